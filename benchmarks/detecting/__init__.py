"""What a monitor finds in whole conversations, by what it may spend on decodes."""
