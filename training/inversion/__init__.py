"""From pictures to identities: latents, cameras and a tuned generator that show them again."""
