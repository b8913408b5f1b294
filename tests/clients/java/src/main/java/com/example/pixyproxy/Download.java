package com.example.pixyproxy;

import static java.nio.file.StandardOpenOption.APPEND;
import static java.nio.file.StandardOpenOption.CREATE;

import com.pixyproxy.v1.ContentInfo;
import com.pixyproxy.v1.GetImageContentRequest;
import com.pixyproxy.v1.ImageServiceGrpc.ImageServiceBlockingStub;
import io.grpc.Deadline;
import java.io.IOException;
import java.io.OutputStream;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.DigestInputStream;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;

/** Streams pictures into files. */
public final class Download {
  private Download() {}

  /**
   * Streams a picture into a file, and returns how many bytes came.
   *
   * <p>It goes on where the file ends, also after the connection was lost on the way.
   *
   * @throws IOException also where the file then has other bytes than the picture's
   */
  public static long download(ImageServiceBlockingStub images, String guid, Path path, Deadline deadline)
      throws IOException, InterruptedException {
    var start = Files.exists(path) ? Files.size(path) : 0;
    ContentInfo info;
    try (var file = Files.newOutputStream(path, CREATE, APPEND)) {
      info = Refusal.repeat(deadline, () -> appendRest(images.withDeadline(deadline), guid, path, file));
    }
    check(path, info);
    return Files.size(path) - start;
  }

  private static ContentInfo appendRest(
      ImageServiceBlockingStub images, String guid, Path path, OutputStream file) {
    try {
      var request = GetImageContentRequest.newBuilder().setGuid(guid).setReadOffset(Files.size(path));
      var messages = images.getImageContent(request.build());
      var info = messages.next().getInfo();
      while (messages.hasNext()) {
        messages.next().getData().writeTo(file);
      }
      return info;
    } catch (IOException error) {
      throw new UncheckedIOException(error);
    }
  }

  private static void check(Path path, ContentInfo info) throws IOException {
    try (var file = new DigestInputStream(Files.newInputStream(path), MessageDigest.getInstance("SHA-256"))) {
      file.transferTo(OutputStream.nullOutputStream());
      var found = HexFormat.of().formatHex(file.getMessageDigest().digest());
      if (!found.equals(info.getSha256())) {
        throw new IOException(path + " has the SHA-256 " + found + ", not the picture's " + info.getSha256());
      }
    } catch (NoSuchAlgorithmException error) {
      throw new IllegalStateException(error);
    }
  }
}
