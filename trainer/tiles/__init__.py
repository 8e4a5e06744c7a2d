"""From images to uint8 batches on the device."""
