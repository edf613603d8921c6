"""Pages, sheets, plots and command lines for people to read. Knows neither adapters nor bases."""
