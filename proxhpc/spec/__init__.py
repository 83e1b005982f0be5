"""What the user writes: manifest, site, recipe, refiner file."""
