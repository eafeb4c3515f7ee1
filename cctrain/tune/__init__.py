"""Which setting of a recipe trains most tokens a second: a search that a model of the step guides, in a few trials."""
