/*
 * listener.c
 *	  The socket on which the web server finds us.
 */
#include "listener.h"
#include "config.h"
#include "handover.h"
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn. */
#define BACKLOG 4096

/* FastCGI, section 2.2: the listening socket is descriptor 0. */
static int
take_over(void)
{
	int listening = 0;
	socklen_t length = sizeof(listening);

	if (getsockopt(STDIN_FILENO, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) == 0 && listening)
		return STDIN_FILENO;
	log_line("REGPILOT_LISTEN is not set and descriptor 0 is not a listening socket");
	return -1;
}

/* Removes a socket that a process which is gone has left behind; false after a message. */
static bool
remove_stale(const struct sockaddr_un *address)
{
	struct stat status;
	int probe;
	int error = 0;

	if (lstat(address->sun_path, &status) != 0)
		return true;
	if (!S_ISSOCK(status.st_mode))
	{
		log_line("\"%s\" exists and is not a socket", address->sun_path);
		return false;
	}

	probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (probe < 0 || connect(probe, (const struct sockaddr *) address, sizeof(*address)) != 0)
		error = errno;
	if (probe >= 0)
		close(probe);
	if (error != ECONNREFUSED) /* nobody listens */
	{
		log_line("another process listens on \"%s\"", address->sun_path);
		return false;
	}
	if (unlink(address->sun_path) != 0)
	{
		log_line("cannot remove \"%s\": %s", address->sun_path, strerror(errno));
		return false;
	}
	return true;
}

static int
open_socket(void)
{
	const struct sockaddr *address = (const struct sockaddr *) &config.address;
	int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int on = 1;
	mode_t mask;
	int bound;

	if (fd < 0)
		goto failed;
	if (address->sa_family == AF_UNIX)
	{
		if (!remove_stale((const struct sockaddr_un *) address))
		{
			close(fd);
			return -1;
		}
	}
	else
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));

	mask = umask(0117); /* mode 0660: the web server connects through its group */
	bound = bind(fd, address, config.address_length);
	umask(mask);
	if (bound == 0 && listen(fd, BACKLOG) == 0)
		return fd;

failed:
	log_line("cannot listen on %s: %s", config.listen, strerror(errno));
	if (fd >= 0)
		close(fd);
	return -1;
}

int
listener_open(void)
{
	int fd = handover_expected() || config.listen == NULL ? take_over() : open_socket();

	/* A connection may be gone again between poll() and accept(). */
	if (fd >= 0)
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	return fd;
}
