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
