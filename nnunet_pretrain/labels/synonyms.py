"""Synonyms: the names datasets use for the structures this package knows.

Add a name here when a dataset in use calls a structure by it and no other structure could be meant. Names such as
"tumor", "vessel" or "cancer" do not belong here: which organ they lie in depends on the dataset.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import cache

from nnunet_pretrain.labels.structures import GROUPS, TOTALSEGMENTATOR_STRUCTURES
from nnunet_pretrain.labels.structures import STRUCTURES as _KNOWN

# Structure (or group) to further names. Case, separators ("-", ".", blanks) and the place of "left"/"right" do not
# matter: "Left Kidney", "kidney_l" and "kidney-left" are matched by rule.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "aorta": ("arota", "aorta_abdominalis", "abdominal_aorta"),
    "gall_bladder": ("gallbladder", "gb", "vesica_biliaris"),
    "liver": ("hepar",),
    "pancreas": ("pancreatic_parenchyma",),
    "postcava": ("inferior_vena_cava", "ivc", "vena_cava_inferior"),
    "spleen": ("lien",),
    "stomach": ("gaster",),
    "adrenal_gland_left": ("adrenal_left", "suprarenal_gland_left", "lag"),
    "adrenal_gland_right": ("adrenal_right", "suprarenal_gland_right", "rag"),
    "kidney_left": ("lk",),
    "kidney_right": ("rk",),
    "bladder": ("urinary_bladder", "vesica_urinaria"),
    "celiac_trunk": ("celiac_truck", "coeliac_trunk", "celiac_artery", "celiac_axis", "truncus_coeliacus", "celiac_aa"),
    "colon": (),
    "duodenum": (),
    "esophagus": ("oesophagus", "eso"),
    "hepatic_vessel": ("hepatic_vessels", "liver_vessel", "liver_vessels"),
    "intestine": ("small_bowel", "small_intestine", "bowel_small"),
    "portal_vein_and_splenic_vein": (
        "portal_and_splenic_vein", "portal_vein_and_splenic", "portal_splenic_vein", "pv_sv", "psv",
    ),
    "prostate": ("prostata", "prostate_gland"),
    "rectum": (),
    "uterus": (),
    "liver_tumor": ("liver_lesion", "liver_cancer", "hepatic_tumor", "liver_tumors", "hepatic_tumors"),
    "pancreas_tumor": ("pancreatic_tumor", "pancreas_lesion", "pancreatic_lesion", "pancreas_cancer", "pdac"),
    "kidney_tumor": ("renal_tumor", "kidney_cancer", "kidney_tumors"),
    "kidney_cyst": ("renal_cyst", "kidney_cysts"),
    "colon_tumor": ("colon_cancer", "colon_cancer_primaries", "colon_lesion"),
    "lung_tumor": ("lung_cancer", "lung_lesion", "lung_tumors"),
    "kidney": ("kidneys", "both_kidneys", "kidney_unsided"),
    "adrenal_gland": ("adrenal", "adrenals", "adrenal_glands"),
    "lung": ("lungs",),
    "femur": ("femurs", "femora"),
    "prostate_or_uterus": ("prostate_uterus", "prostate_and_uterus", "uterus_or_prostate"),
    "colon_or_rectum": ("colon_rectum", "colorectum", "large_bowel", "large_intestine"),
    "bone": ("bones", "skeleton"),
    "heart": ("whole_heart",),
    "spinal_cord": ("spinal_canal_cord",),
}  # fmt: skip

_SPELLINGS = (("tumour", "tumor"), ("oesophag", "esophag"), ("coeliac", "celiac"))


def normalised(name: str) -> str:
    """Returns a name in lower case with single underscores, side last and spelt out, in American spelling."""
    words = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()).strip("_").split("_")
    sides = {"left": "left", "l": "left", "lt": "left", "right": "right", "r": "right", "rt": "right"}
    side = [sides[word] for word in words if word in sides]
    text = "_".join([word for word in words if word not in sides] + side)
    for found, wanted in _SPELLINGS:
        text = text.replace(found, wanted)
    return text


def match(name: str, further: Iterable[str] = ()) -> str | None:
    """Finds the structure or group a dataset's label name stands for.

    Args:
        name: The dataset's name.
        further: Structures beyond the ones this package knows, such as those of a user's own label space.

    Returns:
        The structure's or group's name, or None if the name is unknown: there is no guessing.
    """
    return _table(tuple(further)).get(normalised(name))


def nearest_names(name: str, further: Iterable[str] = (), count: int = 3) -> list[str]:
    """Returns known structures and groups whose name or synonym resembles a name, the most similar first."""
    table = _table(tuple(further))
    text = normalised(name)
    similar = difflib.get_close_matches(text, table, n=4 * count, cutoff=0.5)
    sharing = [known for known in table if set(text.split("_")) & set(known.split("_"))]
    return list(dict.fromkeys(table[known] for known in [*similar, *sharing]))[:count]


@cache
def _table(further: tuple[str, ...]) -> dict[str, str]:
    """Returns every known name, normalised, to the structure or group it stands for."""
    table = {normalised(name): name for name in (*_KNOWN, *TOTALSEGMENTATOR_STRUCTURES, *GROUPS, *further)}
    for structure, names in SYNONYMS.items():
        for name in names:
            table.setdefault(normalised(name), structure)
    return table
