"""The Model health page: server-rendered HTML behind Airflow's login. Airflow is behind the port `access.Access`."""
