"""What a training draws into its fold folder, from arrays alone."""
