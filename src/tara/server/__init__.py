"""HTTP: OpenAI's image routes, jobs and adapters for many users on one base. Knows no mathematics and no terminal."""
