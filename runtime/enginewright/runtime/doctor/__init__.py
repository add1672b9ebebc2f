"""Will this artifact run here? From its headers and this machine alone; needs no GPU to ask."""
