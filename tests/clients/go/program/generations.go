package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"

	"github.com/google/uuid"
	"google.golang.org/grpc/credentials/insecure"

	"example.com/client/pixyproxy"
	pb "example.com/client/pixyproxypb"
)

// watches starts a generation at one server, and watches it at another one.
func watches(ctx context.Context) (any, error) {
	connection, _ := connectAsUser()
	defer connection.Close()
	started, err := start(ctx, pb.NewGenerationServiceClient(connection))
	if err != nil {
		return nil, err
	}
	user, password := os.Getenv("PIXY_USERNAME"), os.Getenv("PIXY_PASSWORD")
	other, err := pixyproxy.Connect(os.Args[2], insecure.NewCredentials(), user, password)
	if err != nil {
		return nil, err
	}
	defer other.Close()
	states, partials := []string{}, []string{}
	ended, err := pixyproxy.Watch(ctx, pb.NewGenerationServiceClient(other), started.Guid,
		func(generation *pb.Generation) { states = append(states, generation.State.String()) },
		func(image *pb.PartialImage, data []byte) {
			hash := sha256.Sum256(data)
			partials = append(partials, image.ContentType+" "+hex.EncodeToString(hash[:]))
		},
	)
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"guid": started.Guid, "states": states, "partials": partials, "image": ended.GetImage().GetGuid(),
	}, nil
}

// cancels starts a generation, cancels it twice, and tries to cancel one that has ended.
func cancels(ctx context.Context) (any, error) {
	connection, _ := connectAsUser()
	defer connection.Close()
	generations := pb.NewGenerationServiceClient(connection)
	started, err := start(ctx, generations)
	if err != nil {
		return nil, err
	}
	states := []string{started.State.String()}
	for range 2 {
		cancelled, err := generations.CancelGeneration(ctx, &pb.CancelGenerationRequest{Guid: started.Guid})
		if err != nil {
			return nil, err
		}
		states = append(states, cancelled.Generation.State.String())
	}
	_, err = generations.CancelGeneration(ctx, &pb.CancelGenerationRequest{Guid: os.Args[2]})
	return map[string]any{
		"guid": started.Guid, "states": states, "refused": pixyproxy.RefusalOf(err).Reason,
	}, nil
}

func start(ctx context.Context, generations pb.GenerationServiceClient) (*pb.Generation, error) {
	request := &pb.CreateGenerationRequest{Request: &pb.CreateImageRequest{
		Prompt:    "A lighthouse",
		RequestId: uuid.NewString(),
		Options:   &pb.GenerationOptions{Size: size, PartialImages: 2},
	}}
	response, err := pixyproxy.Repeat(ctx, func() (*pb.CreateGenerationResponse, error) {
		return generations.CreateGeneration(ctx, request)
	})
	return response.GetGeneration(), err
}
