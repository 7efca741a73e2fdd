// Package deploy is where Selvage is brought to a cluster from:
//
//   - cmd/image and image make the image; Dockerfile makes it with an engine.
//   - base and overlays are for kustomize.
//   - pools has the API of IPPools and what checks them; examples shows some.
//   - cleanup, for kustomize too, takes out of the kernel of every node what the
//     agents have put there.
//   - chart/selvage is for Helm.
//
// It holds no code; its tests compare the manifests with each other, with the
// types of Kubernetes, and with what they are meant to ensure.
package deploy
