"""ControlNets (Zhang et al. 2023): pictures that say what is where in a frame, from the job to the UNet's residuals."""
