// Command program does what its first argument says with a server, and prints in JSON what came of it: it is how the
// client is tested.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"example.com/client/pixyproxy"
	pb "example.com/client/pixyproxypb"
)

var commands = map[string]func(context.Context) (any, error){
	"journey": journey,
	"calls":   calls,
	"repeats": repeats,
	"watches": watches,
	"cancels": cancels,
	"edits":   edits,
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	report, err := commands[os.Args[1]](ctx)
	if err != nil {
		log.Fatal(err)
	}
	text, err := json.Marshal(report)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(text))
}

func connect(username, password string) (*grpc.ClientConn, pb.ImageServiceClient) {
	connection, err := pixyproxy.Connect(os.Getenv("PIXY_ADDRESS"), insecure.NewCredentials(), username, password)
	if err != nil {
		log.Fatal(err)
	}
	return connection, pb.NewImageServiceClient(connection)
}

func connectAsUser() (*grpc.ClientConn, pb.ImageServiceClient) {
	return connect(os.Getenv("PIXY_USERNAME"), os.Getenv("PIXY_PASSWORD"))
}
