"""An artifact's folder: what it says, whether it is whole, what of it may run here."""
