// Only a version and its checksum. flanneld is built as the module's own main
// package, by its own go.mod, from a copy without two of its backends; `go mod
// tidy` would drop the requirement.
module github.com/selvage-net/selvage/e2e/artifacts/modules/flannel

go 1.26.0

require github.com/flannel-io/flannel v0.28.4
