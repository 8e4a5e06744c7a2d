"""The nine tissues of NCT-CRC-HE-100K, drawn: each function returns haematoxylin and eosin (optical density)."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from trainer.tiles.synthetic.canvas import FIELD_UM, Canvas, Field, Flow, Nucleus, Points, ellipses

Stains = tuple[Field, Field]
Floats = NDArray[np.float64]

LYMPHOCYTE = Nucleus(6.0, 5.4, 0.8, wobble=0.07, clumps=0.18)
FIBROBLAST = Nucleus(14.0, 2.2, 0.6, variation=0.25, clumps=0.15)
SMOOTH_MUSCLE = Nucleus(19.0, 3.5, 0.55, variation=0.18, wobble=0.05, clumps=0.15)
ADIPOCYTE = Nucleus(9.0, 2.2, 0.65)
ENTEROCYTE = Nucleus(6.0, 3.8, 0.75, clumps=0.2)
CARCINOMA = Nucleus(11.0, 6.8, 0.7, variation=0.2, wobble=0.14, clearing=0.6, nucleolus=2.0, clumps=0.15)
GHOST = Nucleus(9.0, 7.5, 0.12, variation=0.2, wobble=0.2, clearing=1.0)
APOPTOTIC = Nucleus(1.6, 1.4, 0.9, variation=0.45)
MACROPHAGE = Nucleus(6.5, 5.0, 0.5, variation=0.2, clearing=0.4)


def adipose(canvas: Canvas) -> Stains:
    """Fat: empty adipocytes, thin septa, a few flattened nuclei at their edge."""
    rng = canvas.rng
    nearest, second, third = nearest_three(canvas, canvas.scatter(rng.uniform(42, 62), jitter=0.16))
    septum = np.exp(-(((second - nearest) / rng.uniform(1.3, 3.0)) ** 2))
    junction = np.exp(-(((third - nearest) / rng.uniform(3, 7)) ** 2))
    tissue = np.maximum(septum, junction) * (1 + 0.2 * canvas.noise(4))
    edge = rng.permutation(np.argwhere(septum > 0.8))[: rng.integers(2, 6)]
    centres = (edge[:, ::-1] + 0.5) * (FIELD_UM / canvas.side)
    nuclei = ADIPOCYTE.draw(canvas, centres, canvas.at(ridge_angle(canvas, second - nearest), centres))
    return np.maximum(0.07 * tissue, nuclei), 0.28 * tissue


def background(canvas: Canvas) -> Stains:
    """Glass: an uneven film, specks of dirt, now and then something out of focus."""
    rng = canvas.rng
    specks = rng.uniform(0, FIELD_UM, (rng.integers(0, 9), 2))
    smudges = rng.uniform(0, FIELD_UM, (rng.integers(0, 3), 2))
    size, turn = rng.lognormal(0.2, 0.5, len(specks)), rng.uniform(0, 3, len(specks))
    sharp = canvas.paint(ellipses(rng, specks, 1.5 * size, size, turn, 0.3), rng.uniform(0.05, 0.3, len(specks)))
    faint = canvas.paint(ellipses(rng, smudges, rng.uniform(5, 30), 6.0, 0.3, 0.3), rng.uniform(0.02, 0.08))
    dirt = sharp + canvas.blur(faint, 2.5)
    film = np.clip(0.015 + 0.012 * canvas.noise(60), 0, None)
    return 0.6 * dirt + film * rng.uniform(0, 1), 0.4 * dirt + film * rng.uniform(0, 1)


def debris(canvas: Canvas) -> Stains:
    """Necrosis: smeary granular eosin, nuclear dust in clouds, ghosts of cells, cracks."""
    rng = canvas.rng
    grain = 0.05 * canvas.noise(1.2) + 0.08 * canvas.noise(2.6) + 0.03 * canvas.noise(8)
    smear = canvas.noise(30)
    crack = np.exp(-((canvas.noise(22) / 0.07) ** 2)) * np.clip(canvas.noise(35) - 0.6, 0, 1)
    ghosts = GHOST.draw(canvas, canvas.scatter(12.5, 0.3))
    dust = canvas.scatter(4.5, 0.5)
    cloudy = canvas.at(canvas.noise(28), dust) + rng.normal(0, 0.5, len(dust))
    fragments = APOPTOTIC.draw(canvas, dust[cloudy > rng.uniform(0.4, 0.9)])
    haze = 0.05 + 0.04 * np.maximum(smear, 0) + 0.3 * canvas.blur(fragments, 2.5) + 0.3 * grain + ghosts
    eosin = 0.34 + grain + 0.05 * smear - 0.5 * ghosts
    return np.maximum(haze * (1 - 0.8 * crack), fragments), eosin * (1 - 0.85 * crack)


def lymphocytes(canvas: Canvas) -> Stains:
    """A lymphoid sheet: small round dark nuclei, hardly any cytoplasm between."""
    rng = canvas.rng
    cells = canvas.scatter(rng.uniform(6.2, 8.2), 0.13)
    nuclei = LYMPHOCYTE.draw(canvas, cells[rng.random(len(cells)) > 0.06])
    gaps = np.clip(canvas.noise(6), 0, 2)
    eosin = 0.2 + 0.05 * canvas.noise(4) - 0.1 * gaps
    return np.maximum(nuclei, 0.1 + 0.02 * canvas.noise(8)), eosin


def mucus(canvas: Canvas) -> Stains:
    """A mucin pool: blue-grey streams and a fine mesh, few cells afloat."""
    rng = canvas.rng
    flow = Flow.draw(canvas, 12.0, 55.0)
    streams = 0.6 * flow.streaks(canvas, 50, 4.0) + 0.5 * flow.streaks(canvas, 25, 1.2)
    strands = np.clip(flow.streaks(canvas, 70, 9) - 1.2, 0, 2)
    mesh = canvas.noise(2.2)
    pool = rng.uniform(0.07, 0.17) + 0.03 * canvas.noise(45)
    pool += 0.04 * streams + 0.02 * mesh + 0.1 * rng.random() * strands
    cells = rng.uniform(0, FIELD_UM, (rng.integers(0, 6), 2))
    bodies = canvas.paint(ellipses(rng, cells, rng.uniform(9, 14), 10.0, 0.0, 0.2), 1.0)
    nuclei = MACROPHAGE.draw(canvas, cells + rng.normal(0, 1.5, cells.shape))
    return np.maximum(pool, nuclei), 0.25 * pool + 0.1 * canvas.blur(bodies, 1.0) * (1 + 0.4 * mesh)


def muscle(canvas: Canvas) -> Stains:
    """Smooth muscle: straight eosinophilic fascicles, cigar-shaped nuclei along them."""
    rng = canvas.rng
    flow = Flow.draw(canvas, 4.0, 80.0)
    fibres = 0.7 * flow.streaks(canvas, 40, 1.3) + 0.7 * flow.streaks(canvas, 90, 5.0)
    clefts = np.exp(-((flow.streaks(canvas, 130, 16) / 0.06) ** 2)) * rng.random()
    cells = canvas.scatter(rng.uniform(14, 19), 0.35)
    nuclei = SMOOTH_MUSCLE.draw(canvas, cells, canvas.at(flow.angle, cells))
    eosin = (0.4 + 0.05 * fibres + 0.03 * canvas.noise(40)) * (1 - 0.6 * clefts)
    return np.maximum(nuclei, 0.07 + 0.02 * fibres), eosin


def stroma(canvas: Canvas) -> Stains:
    """Stroma: wavy collagen with pale clefts between its bundles, thin spindle cells, a stray lymphocyte."""
    rng = canvas.rng
    flow = Flow.draw(canvas, 6.0, 26.0)
    fibres = 0.7 * flow.streaks(canvas, 25, 1.2) + 0.6 * flow.streaks(canvas, 35, 3.0)
    clefts = np.clip(flow.streaks(canvas, 40, 6.0) + 0.35 * fibres - 0.35, 0, 1.2)
    cells = canvas.scatter(rng.uniform(17, 24), 0.4)
    spindles = FIBROBLAST.draw(canvas, cells, canvas.at(flow.angle, cells))
    strays = LYMPHOCYTE.draw(canvas, rng.uniform(0, FIELD_UM, (rng.integers(0, 8), 2)))
    collagen = np.clip(0.35 + 0.06 * fibres - 0.3 * clefts, 0.02, None)
    return np.maximum.reduce([spindles, strays, 0.15 * collagen]), collagen


def normal_mucosa(canvas: Canvas) -> Stains:
    """Normal mucosa: round crypts of goblet cells, their nuclei in one basal ring, lamina propria between."""
    rng = canvas.rng
    spacing = rng.uniform(54, 68)
    crypts = canvas.scatter(spacing, 0.06)
    diameter = spacing * 0.84 * rng.lognormal(0, 0.05, len(crypts))
    oblique = rng.uniform(1.0, 1.2, len(crypts))
    walls = ellipses(rng, crypts, diameter * oblique, diameter / oblique, rng.uniform(0, np.pi, len(crypts)), 0.1)
    inside = canvas.paint(walls, 1.0)
    basal = ENTEROCYTE.draw(canvas, *ring(rng, crypts, walls, 0.88, 4.6, across=True))
    goblets, radial = ring(rng, crypts, walls, 0.57, 7.0)
    width = 6.0 * rng.lognormal(0, 0.18, len(goblets))
    drops = ellipses(rng, goblets, 1.45 * width, width, radial, 0.15)
    vacuoles = canvas.paint(drops, rng.uniform(0.5, 1, len(goblets)))
    lumina = canvas.paint(crypts[:, None] + 0.2 * (walls - crypts[:, None]), 1.0)
    mucin = canvas.blur(np.maximum(vacuoles, lumina), 0.5)
    infiltrate = canvas.scatter(7.5, 0.22)
    between = canvas.at(canvas.blur(inside, 2.0), infiltrate) < 0.15
    lamina = LYMPHOCYTE.draw(canvas, infiltrate[between & (rng.random(len(infiltrate)) < 0.65)])
    propria = 0.22 + 0.06 * canvas.noise(3) + 0.05 * canvas.noise(12)
    eosin = np.where(inside > 0, 0.32 + 0.04 * canvas.noise(3), propria) * (1 - 0.85 * mucin)
    cytoplasm = np.where(inside > 0, 0.13, 0.06) - (0.05 + 0.02 * canvas.noise(2)) * mucin
    return np.maximum.reduce([cytoplasm, basal, lamina]), eosin


def tumour(canvas: Canvas) -> Stains:
    """Adenocarcinoma: crowded crooked glands, large pale-centred nuclei in overlapping layers, dirty lumina."""
    rng = canvas.rng
    spacing = rng.uniform(46, 66)
    glands = canvas.scatter(spacing, 0.14)
    stretch, turn = rng.uniform(1.0, 1.4, len(glands)), rng.uniform(0, np.pi, len(glands))
    walls = ellipses(rng, glands, 1.08 * spacing * stretch, 1.08 * spacing / stretch, turn, 0.25)
    epithelium = canvas.paint(walls, 1.0)
    holes = glands[:, None] + (walls - glands[:, None]) * rng.uniform(0.08, 0.45, (len(glands), 1, 1))
    lumen = canvas.blur(canvas.paint(holes, 1.0), 0.6)
    layers = [ring(rng, glands, walls, depth, 7.4) for depth in (0.84, 0.66, 0.5)]
    cells, radial = (np.concatenate(part) for part in zip(*layers, strict=True))
    kept = (canvas.at(canvas.blur(lumen, 2.5), cells) < 0.1) & (rng.random(len(cells)) < rng.uniform(0.75, 0.95))
    nuclei = CARCINOMA.draw(canvas, cells[kept], radial[kept] + rng.normal(0, 0.3, kept.sum()))
    dirt = lumen * np.clip(canvas.noise(6) - 0.7, 0, 1)
    fibres = 0.28 + 0.06 * Flow.draw(canvas, 6.0, 30.0).streaks(canvas, 25, 1.5)
    eosin = np.where(epithelium > 0, 0.24 + 0.04 * canvas.noise(4), fibres) * (1 - lumen) + 0.3 * dirt
    cytoplasm = np.where(epithelium > 0, 0.15, 0.05) * (1 - lumen) + 0.25 * dirt
    return np.maximum(cytoplasm, nuclei * (1 - lumen)), eosin


def ring(
    rng: np.random.Generator, centres: Points, walls: Points, depth: float, spacing: float, across: bool = False
) -> tuple[Points, Floats]:
    """Return points about `spacing` apart along each wall shrunk to `depth` of its size, and their direction.

    The direction is the radial one, or with `across` the one along the wall.
    """
    radii = depth * (walls - centres[:, None])
    steps = np.roll(radii, -1, axis=1) - radii
    counts = np.maximum(np.hypot(*steps.transpose(2, 0, 1)).sum(axis=1) / spacing, 3).astype(int)
    gland = np.repeat(np.arange(len(centres)), counts)
    place = np.concatenate([(np.arange(n) + rng.random()) / n for n in counts])
    corner = (place + rng.normal(0, 0.15, len(place)) / counts[gland]) % 1 * walls.shape[1]
    first = corner.astype(int) % walls.shape[1]
    radius = radii[gland, first] + steps[gland, first] * (corner % 1)[:, None]
    radius *= rng.normal(1, 0.04, (len(place), 1))
    angle = np.arctan2(radius[:, 1], radius[:, 0])
    return centres[gland] + radius, angle + np.pi / 2 if across else angle


def nearest_three(canvas: Canvas, seeds: Points) -> tuple[Field, Field, Field]:
    """Return each pixel's distances to the three nearest seeds, on slightly warped coordinates."""
    x, y = canvas.coordinates()
    x, y = x + 2.5 * canvas.noise(25), y + 2.5 * canvas.noise(25)
    nearest = second = third = np.full_like(x, np.inf)
    for seed_x, seed_y in seeds.astype(np.float32):
        distance = np.hypot(x - seed_x, y - seed_y)
        third = np.minimum(third, np.maximum(second, distance))
        second = np.minimum(second, np.maximum(nearest, distance))
        nearest = np.minimum(nearest, distance)
    return nearest, second, third


def ridge_angle(canvas: Canvas, field: Field) -> Field:
    """Return the direction of a field's valleys: across the main axis of its structure tensor."""
    down, right = (np.asarray(slope) for slope in np.gradient(field))
    doubled = np.arctan2(canvas.blur(2 * right * down, 1.5), canvas.blur(right**2 - down**2, 1.5))
    return doubled / 2 + np.pi / 2


TISSUES: dict[str, Callable[[Canvas], Stains]] = {
    "ADI": adipose,
    "BACK": background,
    "DEB": debris,
    "LYM": lymphocytes,
    "MUC": mucus,
    "MUS": muscle,
    "NORM": normal_mucosa,
    "STR": stroma,
    "TUM": tumour,
}
