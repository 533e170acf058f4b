# MLflow's own image has neither PostgreSQL's driver nor S3's.
FROM python:3.12-slim-bookworm
RUN pip install --no-cache-dir mlflow==3.17.2 "psycopg2-binary==2.9.*" "boto3==1.*"
# A server needs no rights.
RUN useradd --create-home mlflow
USER mlflow
WORKDIR /home/mlflow
EXPOSE 5000
