"""What is kept on disk: whole files, under locks, by what they depend on."""
