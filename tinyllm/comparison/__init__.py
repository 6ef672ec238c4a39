"""Values of other programs: reading them under our names, and comparing them with ours."""
