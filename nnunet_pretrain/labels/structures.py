"""The structures this package knows by name, and which lesion or vessel lies inside which organ.

Order and ids 1-25 are those of AbdomenAtlas 1.1 (Li et al., ICLR 2024, https://github.com/MrGiovanni/AbdomenAtlas).
All structures are disjoint leaves: a voxel of `liver_tumor` is not `liver`.
"""

ABDOMEN_ATLAS_STRUCTURES = (
    "aorta",
    "gall_bladder",
    "kidney_left",
    "kidney_right",
    "liver",
    "pancreas",
    "postcava",
    "spleen",
    "stomach",
    "adrenal_gland_left",
    "adrenal_gland_right",
    "bladder",
    "celiac_trunk",
    "colon",
    "duodenum",
    "esophagus",
    "femur_left",
    "femur_right",
    "hepatic_vessel",
    "intestine",
    "lung_left",
    "lung_right",
    "portal_vein_and_splenic_vein",
    "prostate",
    "rectum",
)

LESIONS = ("liver_tumor", "pancreas_tumor", "kidney_tumor", "kidney_cyst", "colon_tumor", "lung_tumor")

# Which organ a lesion or vessel lies in. A source that labels only the organ may mean the part with it, and a label
# space that leaves the part out calls it by the organ's name.
PART_OF: dict[str, tuple[str, ...]] = {
    "hepatic_vessel": ("liver",),
    "liver_tumor": ("liver",),
    "pancreas_tumor": ("pancreas",),
    "kidney_tumor": ("kidney_left", "kidney_right"),
    "kidney_cyst": ("kidney_left", "kidney_right"),
    "colon_tumor": ("colon",),
    "lung_tumor": ("lung_left", "lung_right"),
}

STRUCTURES = (*ABDOMEN_ATLAS_STRUCTURES, *LESIONS, "uterus", "brain", "bone")
"""Structures known by name beside those of TotalSegmentator; the default label space has the first 31."""

_SIDES = ("left", "right")
_VERTEBRAE = (
    "S1",
    *(f"L{i}" for i in range(5, 0, -1)),
    *(f"T{i}" for i in range(12, 0, -1)),
    *(f"C{i}" for i in range(7, 0, -1)),
)
_RIBS = tuple(f"rib_{side}_{i}" for side in _SIDES for i in range(1, 13))
_LIMBS = tuple(f"{bone}_{side}" for bone in ("humerus", "scapula", "clavicula", "hip") for side in _SIDES)
_BONES = ("sacrum", *(f"vertebrae_{name}" for name in _VERTEBRAE), *_LIMBS, "skull", *_RIBS, "sternum")

TOTALSEGMENTATOR_STRUCTURES = (
    "trachea",
    "thyroid_gland",
    *_BONES,
    "costal_cartilages",
    "heart",
    "pulmonary_vein",
    "brachiocephalic_trunk",
    *(f"{vessel}_{side}" for vessel in ("subclavian_artery", "common_carotid_artery") for side in ("right", "left")),
    *(f"brachiocephalic_vein_{side}" for side in _SIDES),
    "atrial_appendage_left",
    "superior_vena_cava",
    *(f"{vessel}_{side}" for vessel in ("iliac_artery", "iliac_vena") for side in _SIDES),
    "spinal_cord",
    *(f"gluteus_{part}_{side}" for part in ("maximus", "medius", "minimus") for side in _SIDES),
    *(f"{muscle}_{side}" for muscle in ("autochthon", "iliopsoas") for side in _SIDES),
)
"""Structures only TotalSegmentator v2 labels, under its own names; they can be appended to a label space."""

GROUPS: dict[str, tuple[str, ...]] = {
    "kidney": ("kidney_left", "kidney_right"),
    "adrenal_gland": ("adrenal_gland_left", "adrenal_gland_right"),
    "lung": ("lung_left", "lung_right"),
    "femur": ("femur_left", "femur_right"),
    "prostate_or_uterus": ("prostate", "uterus"),
    "colon_or_rectum": ("colon", "rectum"),
    "bone": ("bone", "femur_left", "femur_right", *_BONES),
}
"""Names for several structures, of which a voxel is one; a source may use them in place of the list.

`bone` is, as a structure, every bone that has no structure of its own.
"""

PAIRED = ("kidney", "adrenal_gland", "lung", "femur")
"""Groups of a left and a right structure, in this order in `GROUPS`."""


def mirrored_name(name: str) -> str:
    """Returns the structure on the other side, or the same if the name has no side."""
    sides = {"left": "right", "right": "left"}
    return "_".join(sides.get(part, part) for part in name.split("_"))
