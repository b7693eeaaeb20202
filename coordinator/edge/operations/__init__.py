"""What operators ask: health, metrics, pools, the live page."""
