"""Where models' files come from: a family, one file for each kind of ``plait.source``."""
