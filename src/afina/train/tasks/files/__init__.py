"""What tasks share whose rows name files: of images, of sounds."""
