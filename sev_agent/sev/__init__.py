"""The vocabulary of AMD memory encryption: generations, policies, flavor and image rules. Pure."""
