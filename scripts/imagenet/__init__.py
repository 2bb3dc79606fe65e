"""ImageNet's layouts, as it is distributed, and their conversion into train/CLASS and val/CLASS."""
