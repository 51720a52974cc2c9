"""An executable survey of edge-edge collaborative training."""
