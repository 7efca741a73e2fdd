// Package artifacts builds, from source, all that a cluster consists of:
// Kubernetes, etcd, containerd, runc, CNI plugins, flannel, CoreDNS, the images
// of pods, upstream's NetworkPolicy suite, and Selvage itself. It needs the Go
// tool with its module proxy and, for what is C, gcc; no container engine and
// no registry.
//
// What is built is said by nested modules below modules/, one for each project
// because their requirements disagree, and by the catalog. To take another
// version: `go get` and `go mod tidy` in that module; for Kubernetes, all of
// k8s.io/* in its go.mod goes along, and the constants beside [References].
//
// [Build] keeps what it makes below Options.Cache:
//
//	kubernetes-v1.36.3-4f1c29d07ab3/bin/kubelet
//	coredns-v1.14.7-90b8a1f2c6de/coredns.tar
//	locks/kubernetes
//
// The last part of a directory's name is a hash of all that the artifact is made
// from: its recipe, go.mod, go.sum, sources of our own, the version of Go. What
// is there is complete: it was built beside and renamed. A lock for each
// artifact makes the second of two builds wait, and then use what the first one
// made. The newest two of each are kept, and those that a running program has in
// its [Set]. Selvage and the probe are compiled from the working tree every
// time, and kept by their content.
package artifacts
