"""Generator and discriminator. Nothing here knows files."""
