# Selvage. `make help` lists the targets; nothing here needs more than Go, make
# and, for what touches the kernel, root.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# nft, ip and conntrack live in sbin, which is not in everybody's PATH.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
# The modules are never a workspace: each must build by its own go.mod.
export GOWORK := off

GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

GOLANGCI_VERSION := v2.15.0
GOLANGCI := $(CURDIR)/.cache/golangci-lint-$(GOLANGCI_VERSION)
CONTROLLER_GEN := $(GO) run sigs.k8s.io/controller-tools/cmd/controller-gen@v0.23.0

# What `make generate` writes. Helm reads nothing outside of the chart, so that the CRD
# is there twice.
CRD := deploy/pools/selvage.dev_ippools.yaml
CHART_CRD := deploy/chart/selvage/files/selvage.dev_ippools.yaml
GENERATED := $(CRD) $(CHART_CRD) informer/api/v1alpha1/zz_generated.deepcopy.go informer/api/calico/zz_generated.deepcopy.go

# Extra flags for every `go test`, e.g. GOTESTFLAGS=-v.
GOTESTFLAGS ?=
# flannel's backend in the cluster of `make cluster` and `make e2e`.
BACKEND ?= vxlan
# More flags for the run of `make e2e`, e.g. E2EFLAGS='--suites=cluster --focus=DNS'.
E2EFLAGS ?=
# What `make test-vm` tests, and more flags for its run, e.g. VMFLAGS='--kernel=6.12 --verbose'.
VM_PACKAGES ?= ./shaping/tc ./informer/link ./policy/nft
VMFLAGS ?=
# How long each fuzz target runs.
FUZZTIME ?= 10s
# How much `make verify` tries. On the tracer: worlds for each of 7 variants of
# the configuration, 40 packets in each; with real packets: packets.
VERIFY_WORLDS ?= 3600
VERIFY_PACKETS ?= 10000

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the static binary bin/selvage
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false \
		-ldflags '-s -w -X main.version=$(VERSION)' -o bin/selvage ./cmd/selvage

.PHONY: deps
deps: ## install the tools that the tests use (Debian, root; nothing if they are there)
	@.ci/install nft:nftables ip:iproute2 conntrack:conntrack sysctl:procps nsenter:util-linux iptables:iptables iperf3:iperf3

.PHONY: test
test: deps ## run all tests but those that need a cluster
	$(GO) test -timeout 20m $(GOTESTFLAGS) ./...
	# Go's cache does not know that these tests read files of other modules, and build
	# the agent.
	cd deploy && $(GO) test -count=1 -timeout 20m $(GOTESTFLAGS) ./...
	cd e2e && $(GO) test -count=1 -timeout 20m $(GOTESTFLAGS) ./...

.PHONY: test-race
test-race: deps ## run the product's tests under the race detector (needs a C compiler)
	@.ci/install gcc:gcc
	CGO_ENABLED=1 $(GO) test -race -timeout 30m $(GOTESTFLAGS) ./...

.PHONY: generate
generate: ## write anew what is made of informer/api: deep copies and the CRD
	$(CONTROLLER_GEN) object paths=./informer/api/...
	$(CONTROLLER_GEN) crd paths=./informer/api/v1alpha1 output:crd:dir=$(dir $(CRD))
	cp $(CRD) $(CHART_CRD)

.PHONY: generated
generated: ## fail if what `make generate` writes is not what is there
	@before=$$(sha256sum $(GENERATED)); $(MAKE) --no-print-directory generate; \
	if [[ $$(sha256sum $(GENERATED)) != "$$before" ]]; then \
		echo "what is made of informer/api was stale, and has been written anew: commit it" >&2; exit 1; fi

.PHONY: lint
lint: $(GOLANGCI) ## check format, vet and golangci-lint in all modules
	@files=$$(gofmt -l cmd deploy e2e informer metrics policy shaping); \
	if [[ -n $$files ]]; then echo "not formatted by gofmt:" $$files >&2; exit 1; fi
	$(GO) vet ./...
	cd deploy && $(GO) vet ./...
	cd e2e && $(GO) vet ./...
	$(GOLANGCI) run --allow-parallel-runners ./...
	cd deploy && $(GOLANGCI) run --allow-parallel-runners --config ../.golangci.yml ./...
	cd e2e && $(GOLANGCI) run --allow-parallel-runners --config ../.golangci.yml ./...

$(GOLANGCI):
	@echo "building golangci-lint $(GOLANGCI_VERSION); this takes some minutes, once"
	mkdir -p $(@D)/bin
	CGO_ENABLED=0 GOFLAGS=-trimpath GOBIN=$(@D)/bin $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv $(@D)/bin/golangci-lint $@

.PHONY: demo
demo: deps build ## build a two-node world of network namespaces and walk the story of policy and bandwidth in it
	cd e2e && CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -o ../bin/demo ./cmd/demo
	bin/demo

.PHONY: image
image: ## build the image for amd64 and arm64, without a container engine, into bin/image
	cd deploy && CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -o ../bin/image-builder ./cmd/image
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) bin/image-builder --repo . --out bin/image \
		--version '$(VERSION)' --revision "$$(git rev-parse HEAD)"

.PHONY: e2e-deps
e2e-deps: deps
	@.ci/install gcc:gcc
	@[[ -e /usr/include/stdio.h ]] || .ci/install stdio.h:libc6-dev

.PHONY: e2e-build
e2e-build: e2e-deps
	cd e2e && CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -o ../bin/ ./cmd/lab ./cmd/artifacts ./cmd/e2e
	cd e2e && CGO_ENABLED=0 $(GO) test -c -trimpath -buildvcs=false -o ../bin/cluster.test ./cluster

.PHONY: cluster
cluster: e2e-build ## bring up a Kubernetes cluster of three nodes with flannel (BACKEND=vxlan|host-gw)
	bin/lab up --backend '$(BACKEND)'

.PHONY: cluster-down
cluster-down: ## remove the cluster of `make cluster`
	@if [[ -x bin/lab ]]; then bin/lab down; fi

.PHONY: e2e
e2e: e2e-build ## judge Selvage on a cluster of its own: upstream's NetworkPolicy suite and our specs (BACKEND)
	bin/e2e --backend '$(BACKEND)' $(E2EFLAGS)

.PHONY: observe
observe: e2e-deps build ## judge dashboards and alerts on a cluster of its own, with a real Prometheus
	@.ci/install chromium:chromium
	cd e2e && CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -o ../bin/ ./cmd/observe
	bin/observe

.PHONY: test-vm
test-vm: deps ## run what touches the kernel on those of Debian, 6.1 and 6.12, in virtual machines (VM_PACKAGES)
	@.ci/install qemu-system-x86_64:qemu-system-x86 depmod:kmod find:findutils xz:xz-utils
	cd e2e && CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -o ../bin/vm ./cmd/vm
	bin/vm test $(VMFLAGS) $(VM_PACKAGES)

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME
	@GO='$(GO)' .ci/fuzz $(FUZZTIME) . e2e

.PHONY: verify
verify: deps ## a million random checks on the tracer and ten thousand in the kernel
	$(GO) test -timeout 6h -count=1 -v -run '^TestTracerAgreesWithOracle$$' ./policy -rapid.checks=$(VERIFY_WORLDS)
	cd e2e && SELVAGE_REQUIRE_PRIVILEGED=1 SELVAGE_CHECKS=$(VERIFY_PACKETS) $(GO) test -timeout 6h -count=1 -v ./kernel

.PHONY: bench-policy
bench-policy: deps build ## measure the policy data plane beside its baselines
	cd e2e && CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -o ../bin/bench-policy ./cmd/bench-policy
	bin/bench-policy

.PHONY: bench-shaping
bench-shaping: deps ## measure how well bandwidth is held and what it costs, beside the CNI's bandwidth plugin
	cd e2e && CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -o ../bin/bench-shaping ./cmd/bench-shaping
	bin/bench-shaping

.PHONY: bench-pools
bench-pools: deps ## measure what IP pools cost, beside one plain rule that masquerades and beside flannel's
	cd e2e && CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -o ../bin/bench-pools ./cmd/bench-pools
	bin/bench-pools

.PHONY: clean
clean: ## remove what was built
	rm -rf bin .cache
