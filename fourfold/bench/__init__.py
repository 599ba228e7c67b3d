"""`fourfold bench`: how fast a checkpoint runs here, against this machine's own limits and other engines."""
