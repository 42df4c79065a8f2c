"""Canonical anatomy of the phantom: which structures exist, where they lie and what they look like.

Reference coordinates are millimetres with axes as in RAS+: x grows towards the patient's right, y towards the front,
z towards the head. The origin lies in the middle of the trunk at the height of the third lumbar vertebra; the domes of
the diaphragm lie near z = 170, the femoral heads near z = -165. The body is a compact adult of average proportions;
:mod:`nnunet_pretrain.phantom.patient` makes individuals of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from nnunet_pretrain.phantom import skeleton
from nnunet_pretrain.phantom.shapes import Ellipsoid, Shape, Tube

ORGANS: tuple[str, ...] = (
    "aorta", "gall_bladder", "kidney_left", "kidney_right", "liver", "pancreas", "postcava", "spleen", "stomach",
    "adrenal_gland_left", "adrenal_gland_right", "bladder", "celiac_trunk", "colon", "duodenum", "esophagus",
    "femur_left", "femur_right", "hepatic_vessel", "intestine", "lung_left", "lung_right",
    "portal_vein_and_splenic_vein", "prostate", "rectum",
)  # fmt: skip
LESIONS: tuple[str, ...] = ("liver_tumor", "pancreas_tumor", "kidney_tumor", "kidney_cyst", "colon_tumor")
STRUCTURES: tuple[str, ...] = ORGANS + LESIONS

PHASES: tuple[str, ...] = ("native", "arterial", "portal")
Density = tuple[float, float, float]
"""HU in each of PHASES."""

AIR_HU = -1000.0
FAT_HU = -100.0
MUSCLE_HU = 52.0


@dataclass(frozen=True)
class Organ:
    """One thing to draw; later ones cover earlier ones.

    Attributes:
        name: A name of STRUCTURES, or any other name for something drawn without a label.
        hu: Density by phase.
        parts: Shapes whose union is the organ.
        carve: Shapes cut out of it.
        blend_mm: Rounding of the seams between parts.
        clip: "" or where it must stay: "cavity", "abdomen" (cavity below the diaphragm), "thorax" (above it).
        inside: Structures it may cover; empty: everything drawn before.
        over_fat: With ``inside``: it may also cover unlabelled fat (lesions that bulge out of their organ).
        above_y: It exists only in front of this reference y (gas above a fluid level); None: everywhere.
        halo_mm: Width of a layer of fat drawn around it first.
        core_mm: Depth below the surface at which the core begins; 0: no core.
        core_hu: Density of the core (lumen, marrow, renal medulla) by phase.
        texture_hu: Unevenness of the core (stool).
        enteric: The core takes oral contrast.
        gas: Share of its length that may hold gas; 0: none.
        shift_mm: Standard deviation of its random displacement.
        size_sd: Standard deviation of its random relative size.
        absent: Probability that an individual lacks it.
    """

    name: str
    hu: Density
    parts: tuple[Shape, ...]
    carve: tuple[Shape, ...] = ()
    blend_mm: float = 0.0
    clip: str = ""
    inside: tuple[str, ...] = ()
    over_fat: bool = False
    above_y: float | None = None
    halo_mm: float = 0.0
    core_mm: float = 0.0
    core_hu: Density = (0.0, 0.0, 0.0)
    texture_hu: float = 0.0
    enteric: bool = False
    gas: float = 0.0
    shift_mm: float = 2.5
    size_sd: float = 0.05
    absent: float = 0.0


@dataclass(frozen=True)
class LesionKind:
    """A kind of lesion and how often it occurs.

    Attributes:
        name: A name of STRUCTURES.
        hosts: Organs it grows in.
        hu: Density by phase.
        chance: Probability that an individual has any.
        most: Largest number in one individual.
        radius_mm: Smallest and largest radius.
        bulges: It may grow into the fat around its organ.
    """

    name: str
    hosts: tuple[str, ...]
    hu: Density
    chance: float
    most: int
    radius_mm: tuple[float, float]
    bulges: bool = False


LESION_KINDS: tuple[LesionKind, ...] = (
    LesionKind("liver_tumor", ("liver",), (38, 52, 58), 0.5, 4, (6, 22)),
    LesionKind("pancreas_tumor", ("pancreas",), (33, 55, 55), 0.25, 1, (8, 15), bulges=True),
    LesionKind("kidney_tumor", ("kidney_left", "kidney_right"), (34, 115, 88), 0.25, 1, (10, 22), bulges=True),
    LesionKind("kidney_cyst", ("kidney_left", "kidney_right"), (4, 4, 6), 0.4, 3, (6, 18), bulges=True),
    LesionKind("colon_tumor", ("colon",), (42, 85, 88), 0.15, 1, (12, 20), bulges=True),
)

_ARTERY: Density = (42, 310, 165)
_VEIN: Density = (40, 95, 150)
_PORTAL: Density = (40, 125, 178)
_BONE: Density = (520, 530, 530)
_MARROW: Density = (210, 220, 220)
_WALL: Density = (42, 80, 85)
_FLUID: Density = (18, 18, 18)
_KIDNEY: Density = (33, 185, 192)
_MEDULLA: Density = (32, 115, 182)


def _frame(
    name: str,
    hu: float,
    parts: tuple[Shape, ...],
    core: tuple[float, float] = (0.0, 0.0),
    carve: tuple[Shape, ...] = (),
    blend_mm: float = 0.0,
) -> Organ:
    """Return an unlabelled, undisplaced structure of one density in all phases; ``core`` is its depth and density."""
    return Organ(
        name, (hu, hu, hu), parts, carve=carve, blend_mm=blend_mm, core_mm=core[0], core_hu=(core[1],) * 3,
        shift_mm=0.0, size_sd=0.0,
    )  # fmt: skip


_RIGHT_KIDNEY = (
    Tube(((50, -44, 67), (63, -38, 50), (69, -35, 30), (66, -31, 8), (60, -27, -8)), (17, 23, 25, 23, 18)),
)
_RIGHT_SINUS = (
    Ellipsoid((46, -31, 30), (15, 9, 12)),
    Ellipsoid((59, -33, 40), (6, 6, 12)),
    Ellipsoid((58, -30, 18), (6, 5, 11)),
)
_LEFT_SHIFT = (0.0, 0.0, 12.0)
_LEFT_KIDNEY = tuple(part.mirrored().moved(_LEFT_SHIFT, 1.0, (0, 0, 0)) for part in _RIGHT_KIDNEY)
_LEFT_SINUS = tuple(part.mirrored().moved(_LEFT_SHIFT, 1.0, (0, 0, 0)) for part in _RIGHT_SINUS)
_FEMUR = (
    Ellipsoid((87, 0, -166), (22, 22, 22)),
    Tube(((90, 0, -168), (112, -4, -182)), (15, 13)),
    Ellipsoid((122, -8, -184), (15, 18, 20)),
    Tube(((120, -5, -190), (110, 0, -270)), (15, 14)),
)

FRAME: tuple[Organ, ...] = (
    Organ("lung_left", (-830, -825, -825), (Ellipsoid((-72, 0, 220), (74, 98, 170)),), clip="thorax", shift_mm=0),
    Organ("lung_right", (-830, -825, -825), (Ellipsoid((72, 0, 220), (74, 98, 170)),), clip="thorax", shift_mm=0),
    Organ("heart", (42, 200, 150), (Ellipsoid((-22, 34, 206), (56, 42, 46), (0, 20, 0)),), clip="thorax", halo_mm=3),
    _frame("muscle", MUSCLE_HU, skeleton.MUSCLES),
    _frame("gluteal_cleft", FAT_HU, skeleton.GLUTEAL_CLEFT),
    _frame("seminal_vesicles", 35, skeleton.SEMINAL_VESICLES),
)

ABDOMEN: tuple[Organ, ...] = (
    Organ(
        "liver", (58, 72, 110),
        (
            Ellipsoid((72, -2, 126), (70, 80, 74)), Ellipsoid((98, 4, 74), (35, 50, 54)),
            Ellipsoid((12, 42, 128), (54, 42, 42), (0, 12, 0)), Ellipsoid((-40, 46, 140), (44, 34, 28), (0, 10, 0)),
            Ellipsoid((14, -4, 118), (20, 20, 26)),
        ),
        carve=(Ellipsoid((24, 4, 46), (49, 57, 44), (0, -20, 0)), Ellipsoid((-20, -30, 120), (36, 44, 60))),
        blend_mm=12, clip="abdomen",
    ),
    Organ(
        "spleen", (48, 125, 125),
        (Ellipsoid((-100, -32, 106), (35, 52, 56), (15, 12, -20)),),
        carve=(Ellipsoid((-57, 5, 98), (28, 46, 46), (0, 0, -20)),), blend_mm=6, clip="abdomen",
        shift_mm=3.5, size_sd=0.1,
    ),
    Organ(
        "stomach", _WALL,
        (Tube(((-60, -20, 150), (-68, -4, 128), (-72, 26, 100), (-52, 46, 74), (-18, 50, 62), (10, 46, 63),
               (22, 40, 65)), (25, 33, 29, 24, 20, 14, 9)),),
        clip="abdomen", core_mm=4, core_hu=(28, 28, 28), enteric=True, gas=1.0, halo_mm=2, size_sd=0.1,
    ),
    Organ("gall_bladder", (12, 12, 12), (Tube(((40, 22, 78), (50, 38, 66), (60, 54, 54)), (6, 13, 15)),),
          core_mm=2, core_hu=(8, 8, 8), size_sd=0.12, absent=0.05, clip="abdomen"),
    Organ(
        "colon", _WALL,
        (Tube(((78, 30, -78), (88, 22, -58), (97, 6, -20), (99, -8, 20), (92, 14, 46), (68, 48, 34), (34, 64, 16),
               (-8, 66, 8), (-48, 62, 28), (-84, 46, 56), (-104, 20, 74), (-107, -14, 56), (-104, -26, 10),
               (-98, -12, -40), (-88, 10, -78), (-60, 26, -100), (-28, 14, -92), (4, 8, -104), (22, -14, -118),
               (6, -38, -120), (0, -50, -128)),
              (19, 22, 20, 19, 18, 16, 16, 16, 16, 16, 16, 14, 13, 13, 12, 12, 12, 12, 12, 12, 13), ripple=0.16),),
        clip="cavity", core_mm=3, core_hu=(5, 5, 5), texture_hu=35, gas=0.45, halo_mm=2, size_sd=0.04,
    ),
    Organ("kidney_right", _KIDNEY, _RIGHT_KIDNEY, halo_mm=6, core_mm=8, core_hu=_MEDULLA, shift_mm=4, size_sd=0.07),
    Organ("kidney_left", _KIDNEY, _LEFT_KIDNEY, halo_mm=6, core_mm=8, core_hu=_MEDULLA, shift_mm=4, size_sd=0.07),
    Organ("renal_sinus", (-60, -55, -50), _RIGHT_SINUS, inside=("kidney_right",), blend_mm=4),
    Organ("renal_sinus", (-60, -55, -50), _LEFT_SINUS, inside=("kidney_left",), blend_mm=4),
    Organ("adrenal_gland_right", (30, 75, 70),
          (Tube(((28, -25, 104), (32, -32, 92), (40, -44, 80)), (3.4, 4.2, 3.4)),
           Tube(((30, -28, 100), (25, -40, 82)), (3.4, 3.2))),
          blend_mm=2, shift_mm=1.5, halo_mm=1.5),
    Organ("adrenal_gland_left", (30, 75, 70),
          (Tube(((-30, -16, 98), (-33, -22, 88), (-44, -34, 78)), (3.4, 4.4, 3.4)),
           Tube(((-31, -18, 94), (-25, -33, 78)), (3.4, 3.2))),
          blend_mm=2, shift_mm=1.5, halo_mm=1.5),
    Organ("pancreas", (40, 112, 98),
          (Tube(((32, 10, 18), (34, 12, 32), (27, 17, 47), (10, 24, 56), (-14, 22, 63), (-46, 4, 76), (-76, -14, 88)),
                (9, 14, 13, 9, 10.5, 10, 8.5), ripple=0.1, ripple_mm=22),),
          blend_mm=3, shift_mm=2, halo_mm=1.5),
    Organ("duodenum", _WALL,
          (Tube(((24, 38, 65), (42, 28, 62), (50, 12, 44), (51, 4, 14), (40, 2, -10), (10, 11, -16), (-18, 12, -6),
                 (-28, 20, 16)), (11, 12, 11.5, 11, 11, 9, 9, 10)),),
          core_mm=3, core_hu=_FLUID, enteric=True, shift_mm=1.5, gas=0.15),
)  # fmt: skip

PELVIS: tuple[Organ, ...] = (
    Organ("bladder", (32, 40, 45), (Ellipsoid((0, 30, -148), (36, 30, 27)),), core_mm=3, core_hu=(6, 6, 10),
          halo_mm=3, size_sd=0.15, shift_mm=2),
    Organ("prostate", (38, 60, 72), (Ellipsoid((0, 8, -184), (22, 17, 15)),), halo_mm=2, shift_mm=1.5, size_sd=0.1),
    Organ("rectum", _WALL, (Tube(((0, -50, -128), (0, -58, -146), (0, -52, -168), (0, -36, -190), (0, -38, -215)),
                                 (14, 17, 17, 13, 11)),),
          core_mm=4, core_hu=(10, 10, 10), texture_hu=35, gas=0.5, shift_mm=1.5, size_sd=0.08, halo_mm=2),
)  # fmt: skip

VESSELS: tuple[Organ, ...] = (
    Organ("mesenteric_artery", _ARTERY, (Tube(((-8, -6, 64), (-6, 8, 46), (0, 18, 6), (6, 26, -35)), (4, 3.5, 3, 2)),)),
    Organ("mesenteric_vein", _PORTAL, (Tube(((13, 14, 48), (15, 17, 20), (16, 24, -30)), (6, 5.5, 3.5)),)),
    Organ("renal_vessels", _VEIN, (Tube(((24, -10, 28), (46, -30, 29)), (4.5, 4)),
                                   Tube(((22, -6, 38), (-12, 6, 42), (-46, -30, 41)), (5, 4.5, 4)))),
    Organ("iliac_veins", _VEIN,
          (Tube(((21, -12, -40), (34, -20, -75), (46, -14, -110), (58, 34, -160), (60, 56, -220)), (9, 8, 8, 8, 7)),
           Tube(((20, -13, -42), (-26, -22, -75), (-46, -14, -110), (-58, 34, -160), (-60, 56, -220)),
                (9, 8, 8, 8, 7))),
          halo_mm=7),
    Organ("iliac_arteries", _ARTERY,
          (Tube(((-6, -8, -36), (28, -8, -72), (54, 2, -115), (68, 48, -165), (72, 62, -220)), (7, 6, 5.5, 5, 5)),
           Tube(((-8, -8, -36), (-30, -8, -72), (-54, 2, -115), (-68, 48, -165), (-72, 62, -220)), (7, 6, 5.5, 5, 5))),
          halo_mm=3),
    Organ("portal_vein_and_splenic_vein", _PORTAL,
          (Tube(((12, 12, 50), (20, 13, 68), (30, 14, 88), (38, 12, 102)), (7, 7.5, 7.5, 7)),
           Tube(((12, 12, 52), (-14, 10, 60), (-44, -6, 76), (-78, -22, 90)), (5.5, 5, 4.5, 4))),
          blend_mm=3, shift_mm=1),
    Organ("postcava", _VEIN, (Tube(((20, -13, -42), (21, -10, 0), (22, -9, 45), (24, -12, 85), (24, -14, 120),
                                    (20, -6, 152), (14, 4, 178)), (11, 11, 11.5, 12, 12.5, 13, 13)),),
          shift_mm=1, size_sd=0.08),
    Organ("celiac_trunk", _ARTERY, (Tube(((-9, -14, 80), (-7, 0, 79), (-4, 9, 82)), (4.5, 4, 4)),
                                    Tube(((-4, 8, 82), (14, 14, 84)), (3.5, 3)),
                                    Tube(((-4, 8, 82), (-22, 6, 84)), (3.5, 3))),
          blend_mm=2, shift_mm=0.5),
    Organ("aorta", _ARTERY, (Tube(((-7, -9, -38), (-10, -9, 0), (-10, -13, 45), (-10, -20, 80), (-11, -28, 115),
                                   (-16, -34, 150), (-22, -38, 200)), (8.5, 9, 9.5, 10.5, 11.5, 12, 12.5)),),
          shift_mm=1, size_sd=0.08),
    Organ("esophagus", (40, 62, 70),
          (Tube(((-5, -18, 215), (-8, -16, 180), (-16, -6, 155), (-32, 0, 140), (-44, 2, 136)), (9, 8.5, 8, 8.5, 9)),),
          shift_mm=1, gas=0.2, core_mm=4, core_hu=(38, 45, 48)),
    Organ("hepatic_vessel", _PORTAL,
          (Tube(((20, -4, 156), (52, -14, 146), (86, -14, 122), (106, -10, 92)), (6, 5.5, 4.5, 3)),
           Tube(((20, -2, 156), (44, 22, 140), (58, 36, 112), (64, 42, 92)), (5.5, 5, 4, 2.5)),
           Tube(((16, 0, 156), (0, 26, 142), (-24, 44, 134)), (5.5, 4.5, 3)),
           Tube(((36, 12, 100), (62, 6, 106), (88, 12, 110), (106, 20, 104)), (6.5, 5.5, 4, 2.5)),
           Tube(((62, 6, 106), (84, -24, 102), (104, -34, 88)), (5, 4, 2.5)),
           Tube(((36, 12, 100), (20, 32, 114), (0, 44, 124), (-30, 50, 132)), (5.5, 5, 4, 2.5))),
          inside=("liver",), blend_mm=2, shift_mm=1.5),
)  # fmt: skip

BONES: tuple[Organ, ...] = (
    _frame("discs", 85, skeleton.SPINE_DISCS),
    _frame("costal_cartilage", 110, skeleton.COSTAL_CARTILAGE),
    _frame("spine", 480, skeleton.SPINE, core=(2.5, 165), blend_mm=3.0),
    _frame("sacrum", 430, skeleton.SACRUM, core=(2.5, 140), blend_mm=8.0),
    _frame("spinal_canal", 25, skeleton.SPINAL_CANAL),
    _frame("ribs", 480, skeleton.RIBS, core=(2.5, 230)),
    _frame("sternum", 400, skeleton.STERNUM, core=(3.0, 180)),
    _frame("hip_bone", 500, skeleton.HIP_BONE, carve=skeleton.HIP_SOCKET,
           core=(3.0, 170), blend_mm=4.0),
    Organ("femur_right", _BONE, _FEMUR, core_mm=4, core_hu=_MARROW, blend_mm=6, shift_mm=0, size_sd=0.03),
    Organ("femur_left", _BONE, tuple(part.mirrored() for part in _FEMUR), core_mm=4, core_hu=_MARROW, blend_mm=6,
          shift_mm=0, size_sd=0.03),
)  # fmt: skip
