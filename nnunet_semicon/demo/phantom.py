"""Synthetic short-axis cine MRI of the heart: what ``semicon demo`` segments.

A scan is a stack of 10 mm slices from the base (slice 0) to the apex, 48 x 48 pixels of 3 mm. Each patient has an
anatomy (five kinds, as in the ACDC data set: normal, dilated, hypertrophic, infarcted, large right ventricle), a pose,
a body around the heart and a scanner; end-diastole (ED) and end-systole (ES) share them. Organs are painted one over
the other on a grid three times as fine in every direction, then averaged: partial volume at every border. Then come
texture, inflow, a bias field, Rician noise and an unknown gain.

The distractors are meant: blood in the aorta looks like blood in the ventricles, the wall of the right ventricle and
the chest muscles look like the myocardium, fat is as bright as blood; trabeculae and papillary muscles are dark but
belong to the cavities, as in ACDC.

Difficulty was set with the supervised control alone, see :mod:`nnunet_semicon.demo.chain`. Nothing here is fitted to
patients, so a result on these images proves nothing about patients.
"""

from dataclasses import dataclass, replace
from enum import IntEnum, auto
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float64]

LABELS = {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
PHASES = ("ED", "ES")
KINDS = ("normal", "dilated", "hypertrophic", "infarcted", "large RV")
SPACING_ZYX = (10.0, 3.0, 3.0)  # mm
PIXELS = 48  # per side
FINE = 3  # samples per voxel and axis
THICKNESS = 8.0  # mm; the rest of the slice distance is gap
SEED = 2021


class Tissue(IntEnum):
    """Everything that is painted, later ones over earlier ones."""

    LUNG = 0
    MUSCLE = auto()
    FAT = auto()
    LIVER = auto()
    STOMACH = auto()
    PERICARDIAL_FAT = auto()
    AORTA = auto()
    RV_WALL = auto()
    RV_BLOOD = auto()
    RV_TRABECULA = auto()
    MYOCARDIUM = auto()
    LV_BLOOD = auto()
    PAPILLARY = auto()


LABEL_OF = {
    Tissue.RV_BLOOD: LABELS["RV"],
    Tissue.RV_TRABECULA: LABELS["RV"],
    Tissue.MYOCARDIUM: LABELS["MYO"],
    Tissue.LV_BLOOD: LABELS["LV"],
    Tissue.PAPILLARY: LABELS["LV"],
}

# relative signal: balanced steady-state and spoiled gradient echo; a scanner lies somewhere between the two
SIGNAL = {
    Tissue.LUNG: (0.08, 0.10),
    Tissue.MUSCLE: (0.34, 0.50),
    Tissue.FAT: (1.10, 0.80),
    Tissue.LIVER: (0.45, 0.62),
    Tissue.STOMACH: (0.60, 0.60),
    Tissue.PERICARDIAL_FAT: (1.00, 0.75),
    Tissue.AORTA: (0.95, 0.85),
    Tissue.RV_WALL: (0.40, 0.52),
    Tissue.RV_BLOOD: (0.95, 0.82),
    Tissue.RV_TRABECULA: (0.60, 0.62),
    Tissue.MYOCARDIUM: (0.36, 0.50),
    Tissue.LV_BLOOD: (1.00, 0.85),
    Tissue.PAPILLARY: (0.45, 0.55),
}
BLOOD = (Tissue.RV_BLOOD, Tissue.LV_BLOOD, Tissue.AORTA)


class Scan(NamedTuple):
    """An image (Z, Y, X) int16, Z from base to apex, and its labels (Z, Y, X) uint8, see ``LABELS``."""

    image: NDArray[np.int16]
    labels: NDArray[np.uint8]


@dataclass(frozen=True)
class Heart:
    """Size and shape of a heart in one phase. Lengths in mm, angles in radians.

    Attributes:
        radius: LV cavity at the base.
        wall: myocardium at the base.
        length: from base to the outside of the apex.
        base: depth of the base below the first slice's center.
        rv_width: how far the RV reaches beyond the outside of the LV, at the base.
        rv_length: from base to the RV's apex.
        septum: direction from the LV to the RV.
        outline: (3, 2) amplitude and phase of the 2nd to 4th harmonic of the LV's outline, relative.
        rv_outline: the same for the RV.
        thicker: relative change of the wall's thickness in the direction ``where``, over ``spread`` radians.
    """

    radius: float
    wall: float
    length: float
    base: float
    rv_width: float
    rv_length: float
    septum: float
    outline: Array
    rv_outline: Array
    thicker: float
    where: float
    spread: float


@dataclass(frozen=True)
class Patient:
    """What both phases share: the heart at ED, its contraction, the pose, the body and the scanner."""

    number: int
    slices: int
    hearts: dict[str, Heart]
    rotation: float
    shift: Array
    body: Array
    scanner: Array


def make_scan(patient: int, phase: str) -> Scan:
    """Return one scan; the same numbers give the same scan everywhere.

    Args:
        patient: number >= 1; ``KINDS[(patient - 1) % 5]`` is its kind.
        phase: ``ED`` or ``ES``.
    """
    person = _draw_patient(patient)
    # RandomState: numpy guarantees that its stream never changes
    random = np.random.RandomState([SEED, patient, 1 + PHASES.index(phase)])
    tissues = _paint(person, person.hearts[phase], random)
    return Scan(_acquire(tissues, person, random), _label(tissues))


# --- anatomy -------------------------------------------------------------------------------------------------------


def _draw_patient(number: int) -> Patient:
    random = np.random.RandomState([SEED, number, 0])
    kind = KINDS[(number - 1) % len(KINDS)]
    ed = _draw_heart(kind, random)
    return Patient(
        number,
        slices=int(np.clip((ed.base + ed.length) // SPACING_ZYX[0] + random.randint(1, 3), 7, 11)),
        hearts={"ED": ed, "ES": _contract(ed, kind, random)},
        rotation=random.uniform(-0.6, 0.6),
        shift=random.uniform(-11, 11, 2),
        body=random.uniform(0, 1, 10),
        scanner=random.uniform(0, 1, 5),
    )


def _draw_heart(kind: str, random: np.random.RandomState) -> Heart:
    radius, wall, rv_width = random.normal(23, 2.2), random.normal(9.5, 1), random.normal(27, 3)
    thicker, spread = random.uniform(-0.1, 0.2), 1.5
    if kind == "dilated":
        radius, wall = radius * 1.3, wall * 0.85
    elif kind == "hypertrophic":
        radius, wall, thicker = radius * 0.93, wall * 1.35, random.uniform(0.2, 0.4)
    elif kind == "infarcted":
        radius, thicker, spread = radius * 1.1, random.uniform(-0.5, -0.35), 0.8
    elif kind == "large RV":
        rv_width = rv_width * 1.4
    length = random.normal(82, 5) + 0.6 * (radius - 23)
    septum = np.pi + random.normal(0, 0.15)  # the RV lies on the left of the image
    return Heart(
        radius,
        wall,
        length,
        base=random.uniform(-8, 4),
        rv_width=rv_width,
        rv_length=length * random.uniform(0.72, 0.9),
        septum=septum,
        outline=_harmonics(random, 0.05),
        rv_outline=_harmonics(random, 0.08),
        thicker=thicker,
        where=septum if kind == "hypertrophic" else random.uniform(-np.pi, np.pi),
        spread=spread,
    )


def _contract(heart: Heart, kind: str, random: np.random.RandomState) -> Heart:
    weak = kind in ("dilated", "infarcted")
    inward = random.uniform(0.82, 0.9) if weak else random.uniform(0.64, 0.76)
    squeeze = random.uniform(0.85, 0.95) if kind == "large RV" else random.uniform(0.68, 0.82)
    descent = random.uniform(3, 7) if weak else random.uniform(7, 12)  # of the base, towards the apex
    return replace(
        heart,
        radius=heart.radius * inward,
        wall=heart.wall * (random.uniform(1.1, 1.2) if weak else random.uniform(1.25, 1.4)),
        length=heart.length - descent,
        base=heart.base + descent,
        rv_width=heart.rv_width * squeeze,
        rv_length=heart.rv_length - descent - 3,
    )


def _harmonics(random: np.random.RandomState, size: float) -> Array:
    order = np.arange(2, 5)
    return np.stack([random.normal(0, size, 3) * 2 / order, random.uniform(-np.pi, np.pi, 3)], axis=1)


# --- painting ------------------------------------------------------------------------------------------------------


def _paint(patient: Patient, heart: Heart, random: np.random.RandomState) -> NDArray[np.uint8]:
    """Return the tissue of every fine sample: (Z, FINE, PIXELS, FINE, PIXELS, FINE)."""
    slices = []
    side = (np.arange(PIXELS * FINE) + 0.5) / FINE - PIXELS / 2
    y, x = np.meshgrid(side * SPACING_ZYX[1], side * SPACING_ZYX[2], indexing="ij")
    for index in range(patient.slices):
        breath = random.normal(0, 1.6, 2)  # slices are acquired in different breath-holds
        bend = 2.5 * np.stack([_smooth(random, (PIXELS, PIXELS), 8) for _ in range(2)])
        u, v = np.kron(bend, np.ones((1, FINE, FINE))) + np.stack([x, y]) - (patient.shift + breath)[:, None, None]
        dots = random.uniform(0, 1, (14, 2))
        for offset in (np.arange(FINE) + 0.5) / FINE - 0.5:
            depth = index * SPACING_ZYX[0] + offset * THICKNESS - heart.base
            slices.append(_paint_plane(u, v, depth, patient, heart, dots))
    planes = np.stack(slices)
    return planes.reshape(patient.slices, FINE, PIXELS, FINE, PIXELS, FINE)


def _paint_plane(u: Array, v: Array, depth: float, patient: Patient, heart: Heart, dots: Array) -> NDArray[np.uint8]:
    """Paint one plane. ``u``, ``v``: mm to the right and down from the LV's axis; ``depth``: mm below the base."""
    body = patient.body
    below = depth + heart.base  # mm below the first slice: the body does not move with the heart
    plane = np.full(u.shape, Tissue.LUNG, dtype=np.uint8)
    chest = 0.5 * u + 0.87 * v + 50 + 10 * body[0] + 3 * np.sin(u / 18 + 6 * body[1])  # < 0: chest wall, at the top
    plane[chest < 0] = Tissue.MUSCLE
    plane[(chest < -9 - 5 * body[2]) | ((chest > -3) & (chest < 0))] = Tissue.FAT
    liver = v - 0.55 * u - (62 - 0.35 * below - 14 * body[3]) + 3 * np.sin(u / 14 + 6 * body[4])
    plane[liver > 0] = Tissue.LIVER
    stomach = ((u - 62 + 16 * body[5]) / 26) ** 2 + ((v - 58 + 10 * body[6]) / (14 + 0.15 * below)) ** 2
    plane[stomach < 1] = Tissue.STOMACH
    aorta = (u - 44 + 14 * body[7]) ** 2 + (v - 52 + 14 * body[8]) ** 2
    plane[aorta < 10.5**2] = Tissue.AORTA

    cosine, sine = np.cos(patient.rotation), np.sin(patient.rotation)
    u, v = cosine * u + sine * v, cosine * v - sine * u
    distance, angle = np.hypot(u, v), np.arctan2(v, u)
    above, depth = depth < 0, max(depth, 0.0)
    outside, inside = _lv_outlines(angle, depth, heart)
    rv = _rv_level(u, v, angle, depth, heart)  # < 1 inside the RV
    epi = (heart.radius + heart.wall) * _profile(depth / heart.length)
    fat = 3 + 5 * body[9] * (1 + np.sin(angle * 2 + 6 * body[1]))
    if epi > 0:
        plane[(distance < outside + fat) | (rv < 1 + (fat + 3) / 40)] = Tissue.PERICARDIAL_FAT
    if above:  # atrium and outflow look like the ventricles, only their wall is thin; neither has a label
        plane[rv < 1] = Tissue.AORTA
        plane[distance < 0.95 * outside] = Tissue.RV_WALL
        plane[distance < 0.84 * outside] = Tissue.AORTA
        return plane
    plane[rv < 1.1] = Tissue.RV_WALL
    plane[rv < 1] = Tissue.RV_BLOOD
    for a, b in dots[:10]:  # trabeculae near the free wall
        where = heart.septum + 2.2 * (a - 0.5)
        reach = epi + heart.rv_width * (0.35 + 0.6 * b) * _profile(depth / heart.rv_length)
        plane[(rv < 1) & _disk(u, v, where, reach, 2.2)] = Tissue.RV_TRABECULA
    plane[distance < outside] = Tissue.MYOCARDIUM
    plane[distance < inside] = Tissue.LV_BLOOD
    if 0.2 < depth / heart.length < 0.8:
        for side, (a, b) in zip((-1, 1), dots[10:12], strict=True):
            where = heart.septum + np.pi + side * (0.9 + 0.3 * a)
            reach = 0.62 * heart.radius * _profile(depth / heart.length)
            size = heart.wall * (0.32 + 0.14 * b)
            plane[(distance < inside) & _disk(u, v, where, reach, size)] = Tissue.PAPILLARY
    return plane


def _disk(u: Array, v: Array, direction: float, reach: float, radius: float) -> NDArray[np.bool_]:
    """Return where a disk is whose center lies at ``reach`` in ``direction``."""
    return (u - reach * np.cos(direction)) ** 2 + (v - reach * np.sin(direction)) ** 2 < radius**2


def _profile(position: float) -> float:
    """Return the radius of a ventricle relative to its base; ``position``: 0 at the base, 1 at the apex."""
    return float(np.sqrt(1 - position**2.4)) if 0 <= position < 1 else 0.0


def _lv_outlines(angle: Array, depth: float, heart: Heart) -> tuple[Array, Array]:
    """Return the distance of the outer and of the inner border of the myocardium from the axis, per direction."""
    shape = _outline(angle, heart.outline)
    outside = (heart.radius + heart.wall) * _profile(depth / heart.length)
    cavity = heart.radius * _profile(depth / (heart.length - heart.wall))
    away = np.remainder(angle - heart.where + np.pi, 2 * np.pi) - np.pi
    wall = (outside - cavity) * (1 + heart.thicker * np.exp(-((away / heart.spread) ** 2)))
    return outside * shape, np.maximum(outside - wall, 0) * shape


def _rv_level(u: Array, v: Array, angle: Array, depth: float, heart: Heart) -> Array:
    """Return a level that is 1 on the outline of the RV and smaller inside: an ellipse that the LV covers in part."""
    size = _profile(depth / heart.rv_length)
    if size == 0:
        return np.full(u.shape, np.inf)
    epi = (heart.radius + heart.wall) * _profile(depth / heart.length)
    along = u * np.cos(heart.septum) + v * np.sin(heart.septum)
    across = v * np.cos(heart.septum) - u * np.sin(heart.septum)
    far = epi + heart.rv_width * size
    center = 0.42 * epi
    half_length = np.where(along > center, far - center, 0.97 * epi)  # it never shows on the other side of the LV
    ellipse = np.hypot((along - center) / half_length, across / (0.98 * epi * (0.35 + 0.65 * size)))
    return ellipse / _outline(angle, heart.rv_outline)


def _outline(angle: Array, harmonics: Array) -> Array:
    return 1 + sum(a * np.cos(k * angle - phase) for k, (a, phase) in enumerate(harmonics, start=2))


def _label(tissues: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the label that most samples of a voxel have."""
    table = np.array([LABEL_OF.get(tissue, 0) for tissue in Tissue], dtype=np.uint8)
    labels = table[tissues]
    share = [np.mean(labels == value, axis=(1, 3, 5)) for value in LABELS.values()]
    return np.argmax(share, axis=0).astype(np.uint8)


# --- imaging -------------------------------------------------------------------------------------------------------


def _acquire(tissues: NDArray[np.uint8], patient: Patient, random: np.random.RandomState) -> NDArray[np.int16]:
    """Return the image of the tissues as the patient's scanner makes it."""
    mix, gamma, noise, bias, saturation = patient.scanner
    shape = (patient.slices, PIXELS, PIXELS)
    image = np.empty(shape)
    signal = np.array([(1 - mix) * a + mix * b for a, b in (SIGNAL[tissue] for tissue in Tissue)])
    signal *= random.normal(1, 0.08, len(signal))
    if saturation < 0.5:  # fat is suppressed
        signal[[Tissue.FAT, Tissue.PERICARDIAL_FAT]] *= 0.25 + 0.5 * saturation
    signal[Tissue.STOMACH] = random.uniform(0.15, 1)
    for index in range(patient.slices):
        inflow = signal.copy()
        inflow[list(BLOOD)] *= random.normal(1, 0.06, len(BLOOD))
        image[index] = inflow[tissues[index]].mean(axis=(0, 2, 4))
    image = gaussian_filter(image, (0, 0.45, 0.45))
    image *= 1 + 0.09 * _smooth(random, shape, (0, 1.3, 1.3))
    image = image ** (0.75 + 0.6 * gamma)
    image *= np.exp((0.12 + 0.2 * bias) * _smooth(random, shape, (6, 18, 18)))
    sigma = 0.02 + 0.05 * noise
    image = np.hypot(image + random.normal(0, sigma, shape), random.normal(0, sigma, shape))
    return np.round(image * random.uniform(200, 900)).astype(np.int16)


def _smooth(random: np.random.RandomState, shape: tuple[int, ...], sigma: float | tuple[float, ...]) -> Array:
    """Return smooth noise of mean 0 and standard deviation 1."""
    field = gaussian_filter(random.normal(0, 1, shape), sigma, mode="reflect")
    return (field - field.mean()) / field.std()
