"""What people look at: the record of a study, figures, one self-contained page, and the live dashboard."""
