// Package pixyproxy is what a Go program needs beside the generated code: signing in, reading errors, repeating what
// may be repeated, watching generations, and streaming pictures into files.
package pixyproxy

import (
	"context"
	_ "embed"
	"encoding/base64"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

//go:generate protoc -I../protos --go_out=.. --go_opt=module=example.com/client --go_opt=Mpixyproxy/v1/image_service.proto=example.com/client/pixyproxypb --go_opt=Mpixyproxy/v1/generation_service.proto=example.com/client/pixyproxypb --go_opt=Mpixyproxy/v1/usage_service.proto=example.com/client/pixyproxypb --go-grpc_out=.. --go-grpc_opt=module=example.com/client --go-grpc_opt=Mpixyproxy/v1/image_service.proto=example.com/client/pixyproxypb --go-grpc_opt=Mpixyproxy/v1/generation_service.proto=example.com/client/pixyproxypb --go-grpc_opt=Mpixyproxy/v1/usage_service.proto=example.com/client/pixyproxypb pixyproxy/v1/image_service.proto pixyproxy/v1/generation_service.proto pixyproxy/v1/usage_service.proto

//go:embed service_config.json
var serviceConfig string

// Connect makes a connection that retries by the service config. With an empty username nobody signs in.
func Connect(address string, transport credentials.TransportCredentials, username, password string) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(serviceConfig),
	}
	if username != "" {
		options = append(options, grpc.WithPerRPCCredentials(basic{username, password}))
	}
	return grpc.NewClient(address, options...)
}

type basic struct{ username, password string }

func (b basic) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token := base64.StdEncoding.EncodeToString([]byte(b.username + ":" + b.password))
	return map[string]string{"authorization": "Basic " + token}, nil
}

// RequireTransportSecurity allows plaintext, which is for loopback: anywhere else connect with credentials.NewTLS.
func (b basic) RequireTransportSecurity() bool { return false }
