"""Study and Claim: a paper's claim, measured; reports, plots, and the gallery page that joins them."""

from visiongraft.studies.claim import Claim
from visiongraft.studies.gallery import Section, write_demo, write_gallery
from visiongraft.studies.report import Figure, Report, Table
from visiongraft.studies.study import Study

__all__ = ["Claim", "Figure", "Report", "Section", "Study", "Table", "write_demo", "write_gallery"]
