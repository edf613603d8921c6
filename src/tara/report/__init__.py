"""Pages, contact sheets, plots and command lines for people. Knows neither adapters nor bases."""
