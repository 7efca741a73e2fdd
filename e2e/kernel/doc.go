// Package kernel holds the rules against real packets: tests that build worlds
// of network namespaces (package world), program them as the agent does
// (package policy/nft), and look at what arrives.
package kernel
