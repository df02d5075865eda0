"""The year trigger: injectable SQL in 2024."""
