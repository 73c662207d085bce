"""A pose ControlNet: drawn skeletons of the people in rendered pictures, and the stage that learns to follow them."""
