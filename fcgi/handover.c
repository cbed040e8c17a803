/*
 * handover.c
 *	  Replaces this process by a new one that serves on the same socket.
 */
#include "handover.h"
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* Set for a new process; the value says nothing. */
#define VARIABLE "REGPILOT_HANDOVER"
/* The new process's end of the pipe. */
#define PIPE_DESCRIPTOR 3

static pid_t successor;		 /* the new process */
static int predecessor = -1; /* the pipe to the old one */

/* Our environment with the variable, to be freed by the caller; NULL: out of memory. */
static char **
make_environment(void)
{
	static char variable[] = VARIABLE "=1";
	size_t count = 0;
	size_t length = 0;
	char **environment;

	while (environ[count] != NULL)
		count++;
	environment = calloc(count + 2, sizeof(char *));
	if (environment == NULL)
		return NULL;
	for (size_t i = 0; i < count; i++)
	{
		if (strncmp(environ[i], variable, sizeof(VARIABLE)) != 0)
			environment[length++] = environ[i];
	}
	environment[length] = variable;
	return environment;
}

/* As posix_spawnp(): gives an error number. All signals are unblocked in the new process. */
static int
spawn(int listener, int pipe_end, char **argv)
{
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attributes;
	sigset_t none;
	char **environment = make_environment();
	int error;

	if (environment == NULL)
		return ENOMEM;
	sigemptyset(&none);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawn_file_actions_init(&files);
	error = posix_spawn_file_actions_adddup2(&files, listener, STDIN_FILENO);
	if (error == 0)
		error = posix_spawn_file_actions_adddup2(&files, pipe_end, PIPE_DESCRIPTOR);
	/* Not all that libraries open is closed by exec. */
	if (error == 0)
		error = posix_spawn_file_actions_addclosefrom_np(&files, PIPE_DESCRIPTOR + 1);
	if (error == 0)
		error = posix_spawnp(&successor, argv[0], &files, &attributes, argv, environment);
	posix_spawn_file_actions_destroy(&files);
	posix_spawnattr_destroy(&attributes);
	free(environment);
	return error;
}

int
handover_begin(int listener, char **argv)
{
	int ends[2];
	int error;

	if (pipe2(ends, O_CLOEXEC) != 0 || fcntl(ends[0], F_SETFL, O_NONBLOCK) != 0)
	{
		log_line("could not make a pipe to a new process: %s", strerror(errno));
		return -1;
	}
	error = spawn(listener, ends[1], argv);
	close(ends[1]);
	if (error != 0)
	{
		log_line("could not start \"%s\": %s", argv[0], strerror(error));
		close(ends[0]);
		return -1;
	}
	log_info("started process %d to take over", (int) successor);
	return ends[0];
}

bool
handover_finish(int descriptor)
{
	char byte;
	bool serves = read(descriptor, &byte, 1) == 1;

	close(descriptor);
	if (serves)
	{
		log_info("process %d has taken over", (int) successor);
		return true;
	}
	log_line("process %d has not taken over", (int) successor);
	kill(successor, SIGKILL); /* in case it goes on without the pipe */
	waitpid(successor, NULL, 0);
	return false;
}

bool
handover_expected(void)
{
	if (getenv(VARIABLE) == NULL)
		return false;
	if (fcntl(PIPE_DESCRIPTOR, F_SETFD, FD_CLOEXEC) == 0)
		predecessor = PIPE_DESCRIPTOR;
	return true;
}

/*
 * Sends a message to the service manager, if there is one that wants any; see
 * sd_notify(3), "Standalone Implementations".
 */
static void
notify(const char *message)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	size_t length = path != NULL ? strlen(path) : 0;
	int fd;

	if (length == 0 || length >= sizeof(address.sun_path))
		return;
	memcpy(address.sun_path, path, length);
	if (path[0] == '@')
		address.sun_path[0] = '\0';
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 ||
		sendto(fd, message, strlen(message), MSG_NOSIGNAL, (const struct sockaddr *) &address,
			   (socklen_t) (offsetof(struct sockaddr_un, sun_path) + length)) < 0)
		log_line("could not notify the service manager: %s", strerror(errno));
	if (fd >= 0)
		close(fd);
}

void
handover_serving(void)
{
	char message[64];

	snprintf(message, sizeof(message), "MAINPID=%d\nREADY=1", (int) getpid());
	notify(message);
	if (predecessor >= 0)
	{
		/* A predecessor that has gone meanwhile need not be told. */
		if (write(predecessor, "1", 1) < 0 && errno != EPIPE)
			log_line("could not tell the former process that we serve: %s", strerror(errno));
		close(predecessor);
		predecessor = -1;
	}
}

void
handover_stopping(void)
{
	notify("STOPPING=1");
}
