"""What maps and measures are called."""

from trainer.model import STAGES

OWN, CENTRED, SHIFTED = "own", "own, centred over the classes", "own, cells half a cell up and left"
TURNED, OTHER, HEAD = "own, turned", "another class's", "untrained head"
STAGE = "untrained from {} on"
TRUNKS = tuple(STAGE.format(stage) for stage in reversed(STAGES[:-1]))
NULLS = (TURNED, OTHER, HEAD, *TRUNKS)
MAPS = (OWN, CENTRED, SHIFTED, *NULLS)

NUCLEI_RHO, NUCLEI_AUROC = "nuclei, rank correlation", "nuclei, AUROC"
FIBRES_RHO, FIBRES_AUROC = "fibre coherence, rank correlation", "fibre coherence, AUROC"
GLASS, BORDER = "heat on glass above glass's area", "heat on the border above its area"
LIKENESS = "rank correlation with the own map"
CHANCE = {
    NUCLEI_RHO: 0.0,
    NUCLEI_AUROC: 0.5,
    FIBRES_RHO: 0.0,
    FIBRES_AUROC: 0.5,
    GLASS: 0.0,
    BORDER: 0.0,
    LIKENESS: 0.0,
}
"""What each measure is for a map that has nothing to do with what it is held against."""
MEASURES = tuple(CHANCE)
ALL = "all classes"
