VENV ?= .venv
PYTHON ?= python3.11
BIN := $(VENV)/bin
PROTOS := $(wildcard protos/nst/v1/*.proto)

protos: $(VENV)/.installed
	$(BIN)/python -m grpc_tools.protoc -Iprotos --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
		--plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
		--python_out=protos --grpc_python_out=protos --mypy_out=protos --mypy_grpc_out=protos $(PROTOS)
