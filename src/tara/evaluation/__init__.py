"""Metrics of generated images, subject by subject: protocols, detection, scores, intervals, a report page."""
