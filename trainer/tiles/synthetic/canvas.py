"""What the tissues are drawn with: polygons, smooth noise, scattered points, flows, nuclei. Lengths in micrometres."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

Field = NDArray[np.floating]  # (side, side), one value a canvas pixel
Points = NDArray[np.floating]  # (n, 2), or (n, corners, 2) for outlines: x and y

FIELD_UM = 112.0  # the side of every tile, whatever its pixels: 224 px at 0.5 um/px
HEXAGON_ROW = math.sqrt(3) / 2  # distance of a hexagonal lattice's rows, in spacings
INTERPOLATION_GAIN = np.float32(1.4)  # interpolating between random numbers averages them: this undoes it
CORNERS = 14  # of an ellipse's outline


@dataclass(frozen=True)
class Canvas:
    """A square field of tissue of `side` pixels, and the random numbers that it is drawn with."""

    side: int
    rng: np.random.Generator

    def coordinates(self) -> tuple[Field, Field]:
        """Return x and y of every pixel's centre, as arrays that broadcast to (side, side)."""
        line = (np.arange(self.side, dtype=np.float32) + 0.5) * np.float32(FIELD_UM / self.side)
        return line[None, :], line[:, None]

    def paint(self, outlines: Points, values: ArrayLike) -> Field:
        """Fill polygons (n, corners, 2), each with its value, later ones over earlier ones."""
        image = Image.new("F", (self.side, self.side))
        draw = ImageDraw.Draw(image)
        seen = ((outlines.max(axis=1) > 0) & (outlines.min(axis=1) < FIELD_UM)).all(axis=1)
        pixels = outlines[seen] * (self.side / FIELD_UM)
        polygons = pixels.reshape(len(pixels), 2 * outlines.shape[1]).tolist()
        fills = np.broadcast_to(values, len(outlines))[seen].tolist()
        for polygon, fill in zip(polygons, fills, strict=True):
            draw.polygon(polygon, fill=fill)
        return np.asarray(image)

    def blur(self, field: Field, sigma: float) -> Field:
        """Smooth a field with a Gaussian of `sigma` micrometres."""
        smooth: Field = ndimage.gaussian_filter(field, sigma * self.side / FIELD_UM, truncate=3.0)
        return smooth

    def noise(self, wavelength: float) -> Field:
        """Return smooth noise, about standard normal, whose features are `wavelength` apart."""
        cells = FIELD_UM / wavelength
        grid = self.rng.standard_normal((int(cells) + 4,) * 2, dtype=np.float32)
        left, top = self.rng.random(2) + 1  # one row and column to spare at each edge, for the bicubic kernel
        window = (left, top, left + cells, top + cells)
        size = (self.side, self.side)
        smooth = Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC, box=window)
        return np.asarray(smooth) * INTERPOLATION_GAIN

    def scatter(self, spacing: float, jitter: float) -> Points:
        """Return the points of a hexagonal lattice at a random angle, each moved by jitter * spacing (s.d.).

        They reach 0.75 * spacing beyond the edge, so that the edge cuts cells as it cuts tissue.
        """
        margin = 0.75 * spacing
        reach = math.ceil((FIELD_UM / 2 + margin) * math.sqrt(2) / (HEXAGON_ROW * spacing)) + 1
        column, row = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1))
        lattice = np.stack([column + row % 2 / 2, row * HEXAGON_ROW], axis=-1).reshape(-1, 2)
        lattice += self.rng.random(2) + self.rng.normal(0, jitter, lattice.shape)
        points = lattice @ rotation(self.rng.uniform(0, math.pi)) * spacing + FIELD_UM / 2
        return points[np.all((points > -margin) & (points < FIELD_UM + margin), axis=1)]

    def at(self, field: Field, points: Points) -> Field:
        """Return a field's value at each point; beyond the edge, that of the nearest pixel."""
        column, row = np.clip(points * (self.side / FIELD_UM), 0, self.side - 1).astype(int).T
        values: Field = field[row, column]
        return values


def rotation(angle: float) -> Points:
    """Return the matrix that turns row vectors by `angle` radians."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


@dataclass(frozen=True)
class Flow:
    """A direction that fibres follow: straight at `angle`, bent by a field of sideways shifts."""

    along: Field
    across: Field
    angle: Field

    @classmethod
    def draw(cls, canvas: Canvas, bend: float, wavelength: float) -> "Flow":
        """Draw a flow at a random angle whose fibres sway by about `bend` over a `wavelength`."""
        angle = canvas.rng.uniform(0, math.pi)
        cos, sin = math.cos(angle), math.sin(angle)
        shift = canvas.noise(wavelength) * bend
        x, y = canvas.coordinates()
        slope_y, slope_x = np.gradient(shift, FIELD_UM / canvas.side)
        across_x, across_y = slope_x - sin, slope_y + cos
        return cls(
            along=x * cos + y * sin,
            across=y * cos - x * sin + shift,
            angle=np.arctan2(-across_x, across_y),
        )

    def streaks(self, canvas: Canvas, length: float, width: float) -> Field:
        """Return noise drawn out along the flow: features `length` long and `width` wide, about N(0, 1)."""
        texture = canvas.rng.standard_normal((64, 64), dtype=np.float32)
        where = np.stack([self.across / width, self.along / length])
        drawn_out: Field = ndimage.map_coordinates(texture, where, order=1, mode="grid-wrap")
        return drawn_out * INTERPOLATION_GAIN


def ellipses(
    rng: np.random.Generator,
    centres: Points,
    length: ArrayLike,
    width: ArrayLike,
    angle: ArrayLike,
    wobble: float,
) -> Points:
    """Return outlines (n, corners, 2) of ellipses with axes length and width, dented by `wobble` of their radius."""
    turn = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    radius = np.full((len(centres), CORNERS), 0.5)
    for waves in (2, 3, 4):
        height, phase = rng.normal(0, wobble, (len(centres), 1)), rng.uniform(0, 2 * np.pi, (len(centres), 1))
        radius += 0.6 / waves * height * np.cos(waves * turn + phase)
    u = np.reshape(length, (-1, 1)) * radius * np.cos(turn)
    v = np.reshape(width, (-1, 1)) * radius * np.sin(turn)
    cos, sin = np.cos(np.reshape(angle, (-1, 1))), np.sin(np.reshape(angle, (-1, 1)))
    outlines: Points = centres[:, None] + np.stack([u * cos - v * sin, u * sin + v * cos], axis=-1)
    return outlines


@dataclass(frozen=True)
class Nucleus:
    """What the nuclei of one cell type look like."""

    length: float
    width: float
    density: float  # optical density of its haematoxylin
    variation: float = 0.12  # of size, shape and density from cell to cell (s.d. of the logarithm)
    wobble: float = 0.1  # dents in its outline, as a share of the radius
    clearing: float = 0.0  # how much paler than its membrane the inside may be (a vesicular nucleus)
    nucleolus: float = 0.0  # diameter
    clumps: float = 0.2  # contrast of the chromatin

    def draw(self, canvas: Canvas, centres: Points, angle: ArrayLike | None = None) -> Field:
        """Return the haematoxylin of nuclei at `centres`, at `angle` or each at its own."""
        rng, n = canvas.rng, len(centres)
        angle = rng.uniform(0, np.pi, n) if angle is None else angle
        size, slimness, darkness = rng.lognormal(0, self.variation, (3, n))
        outlines = [ellipses(rng, centres, self.length * size, self.width * size * slimness**0.5, angle, self.wobble)]
        values = [self.density * darkness]
        if self.clearing:
            outlines.append(centres[:, None] + 0.74 * (outlines[0] - centres[:, None]))
            values.append(values[0] * (1 - self.clearing * rng.random(n)))
        if self.nucleolus:
            shifted = centres + rng.normal(0, self.width / 8, centres.shape)
            outlines.append(ellipses(rng, shifted, self.nucleolus, self.nucleolus, 0, 0.1))
            values.append(1.15 * values[0])
        layered = np.stack(outlines, axis=1).reshape(-1, CORNERS, 2)  # cell by cell, so that whole nuclei overlap
        return canvas.paint(layered, np.stack(values, axis=1).ravel()) * (1 + self.clumps * canvas.noise(1.2))
