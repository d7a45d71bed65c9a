"""What the plugins of serving engines share: the buffer, whose rows it holds, where they go."""
