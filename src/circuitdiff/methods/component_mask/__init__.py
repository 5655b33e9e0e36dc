"""Component masks (DCM): which heads of a group carry what a desideratum asks for."""
