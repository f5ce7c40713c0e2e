"""What all rooms share: units, bytes, clones, backbones and their trunk, files."""
