"""How good a refiner is, on gold data: what people would have kept."""
