"""HTML pages, contact sheets, plots and command lines. Imports neither adapters nor bases."""
