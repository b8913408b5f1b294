package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/google/uuid"
	"google.golang.org/grpc/status"

	"example.com/client/pixyproxy"
	pb "example.com/client/pixyproxypb"
)

// calls makes each call once, and reports with which codes they ended: what is sent again, gRPC itself sent again.
func calls(ctx context.Context) (any, error) {
	connection, images := connectAsUser()
	defer connection.Close()
	generations := pb.NewGenerationServiceClient(connection)
	usage := pb.NewUsageServiceClient(connection)
	guid := uuid.NewString()
	methods := map[string]func() error{
		"CreateImage": func() error {
			_, err := images.CreateImage(ctx, &pb.CreateImageRequest{Prompt: "a lighthouse"})
			return err
		},
		"GetImage": func() error {
			_, err := images.GetImage(ctx, &pb.GetImageRequest{Guid: guid})
			return err
		},
		"ListImages": func() error {
			_, err := images.ListImages(ctx, &pb.ListImagesRequest{})
			return err
		},
		"GetImageContent": func() error {
			stream, err := images.GetImageContent(ctx, &pb.GetImageContentRequest{Guid: guid})
			for err == nil {
				_, err = stream.Recv()
			}
			if err == io.EOF {
				return nil
			}
			return err
		},
		"UpdateImage": func() error {
			_, err := images.UpdateImage(ctx, &pb.UpdateImageRequest{Guid: guid, Tags: []string{"sea"}})
			return err
		},
		"DeleteImage": func() error {
			_, err := images.DeleteImage(ctx, &pb.DeleteImageRequest{Guid: guid})
			return err
		},
		"BatchGetThumbnails": func() error {
			_, err := images.BatchGetThumbnails(ctx, &pb.BatchGetThumbnailsRequest{Guids: []string{guid}})
			return err
		},
		"ImportImage": func() error {
			stream, err := images.ImportImage(ctx)
			if err == nil {
				_, err = stream.CloseAndRecv()
			}
			return err
		},
		"CreateGeneration": func() error {
			_, err := generations.CreateGeneration(ctx, &pb.CreateGenerationRequest{})
			return err
		},
		"GetGeneration": func() error {
			_, err := generations.GetGeneration(ctx, &pb.GetGenerationRequest{})
			return err
		},
		"ListGenerations": func() error {
			_, err := generations.ListGenerations(ctx, &pb.ListGenerationsRequest{})
			return err
		},
		"WatchGeneration": func() error {
			stream, err := generations.WatchGeneration(ctx, &pb.WatchGenerationRequest{})
			for err == nil {
				_, err = stream.Recv()
			}
			if err == io.EOF {
				return nil
			}
			return err
		},
		"CancelGeneration": func() error {
			_, err := generations.CancelGeneration(ctx, &pb.CancelGenerationRequest{})
			return err
		},
		"SummarizeUsage": func() error {
			_, err := usage.SummarizeUsage(ctx, &pb.SummarizeUsageRequest{})
			return err
		},
		"GetQuota": func() error {
			_, err := usage.GetQuota(ctx, &pb.GetQuotaRequest{})
			return err
		},
	}
	var lock sync.Mutex
	var running sync.WaitGroup
	ended := map[string]int{}
	for name, call := range methods {
		running.Go(func() {
			code := int(status.Code(call()))
			lock.Lock()
			defer lock.Unlock()
			ended[name] = code
		})
	}
	running.Wait()
	return ended, nil
}

// repeats creates and downloads a picture at a server that refuses once what it then does.
func repeats(ctx context.Context) (any, error) {
	connection, images := connectAsUser()
	defer connection.Close()
	image, _, err := create(ctx, images, "again")
	if err != nil {
		return nil, err
	}
	path := filepath.Join(os.Args[2], "picture.png")
	received, err := pixyproxy.Download(ctx, images, image.Guid, path)
	return map[string]any{"guid": image.Guid, "path": path, "received": received}, err
}
